"""A TorchScript trace."""

import warnings
from pathlib import Path

import torch

from .base import Format, Request, Run


def _write(request: Request, path: Path) -> Run:
    with warnings.catch_warnings():
        # torch warns that TorchScript is deprecated, and the user has asked for it
        warnings.filterwarnings('ignore', '`torch.jit', DeprecationWarning)
        warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)
        traced = torch.jit.trace(request.subject, request.images, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={'timm_res2net.json': request.meta})
        return torch.jit.load(str(path))


FORMAT = Format(_write, '.pt', False, 'a trace')
