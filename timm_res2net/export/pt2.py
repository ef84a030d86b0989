"""The program of torch.export."""

from pathlib import Path

import torch

from .base import Format, Request, Run


def _write(request: Request, path: Path) -> Run:
    extra = {'timm_res2net.json': request.meta}
    torch.export.save(request.subject, path, extra_files=extra)
    return torch.export.load(path).module()


FORMAT = Format(_write, '.pt2', True, 'torch.export')
