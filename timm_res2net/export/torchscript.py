"""A TorchScript trace."""

from pathlib import Path

import torch

from .base import Format, Request, Run, tracing


def _write(request: Request, path: Path) -> Run:
    with tracing():
        traced = torch.jit.trace(request.subject, request.images, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={'timm_res2net.json': request.meta})
        return torch.jit.load(str(path))


FORMAT = Format(_write, '.pt', False, 'a trace')
