"""The program of torch.export."""

import io
from pathlib import Path

import torch

from .base import Format, Request, Run


def _write(request: Request, path: Path) -> Run:
    extra = {'timm_res2net.json': request.meta}
    written = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    torch.export.save(request.subject, written, extra_files=extra)
    path.write_bytes(written.getbuffer())
    return torch.export.load(path).module()


FORMAT = Format(_write, '.pt2', True, 'torch.export')
