"""The program of torch.export, compiled by AOTInductor for machines like this one."""

import io
from pathlib import Path
from typing import Any

import torch

from .base import Format, Request, Run


def _write(request: Request, path: Path) -> Run:
    inductor: Any = torch._inductor
    configs = {
        'aot_inductor.metadata': {'timm_res2net': request.meta},
        'freezing': not request.step,  # oneDNN packs for a fixed shape; free sizes gain nothing
    }
    written = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    inductor.aoti_compile_and_package(
        request.subject, package_path=written, inductor_configs=configs
    )
    path.write_bytes(written.getbuffer())
    return inductor.aoti_load_package(str(path))


FORMAT = Format(_write, '.pt2', True, 'compiled by AOTInductor for this kind of machine')
