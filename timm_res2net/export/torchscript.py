"""A TorchScript trace."""

import io
from pathlib import Path

import torch

from .base import (
    Format,
    Request,
    Run,
    tracing,
)


def _write(request: Request, path: Path) -> Run:
    with tracing():
        traced = torch.jit.trace(request.subject, request.images, check_trace=False)
        written = io.BytesIO()  # torch's own writer aborts the process if the disk is full
        torch.jit.save(traced, written, _extra_files={'timm_res2net.json': request.meta})
        path.write_bytes(written.getbuffer())
        return torch.jit.load(str(path))


FORMAT = Format(_write, '.pt', False, 'a trace')
