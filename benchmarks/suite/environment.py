"""The machine and the versions of libraries that figures belong to."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_res2net


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    lscpu = _output('lscpu', '-J')
    rows = json.loads(lscpu)['lscpu'] if lscpu else []
    values = {row['field'].rstrip(':'): row['data'] for row in rows}
    name = values.get('Model name') or platform.processor() or platform.machine()
    family, model = values.get('CPU family'), values.get('Model')
    return f'{name} (family {family}, model {model})' if family and model else name


def cpu_has_bf16() -> bool:
    """Return whether the CPU has bfloat16 instructions (AVX512-BF16, AMX or SVE)."""
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        words = set(cpuinfo.read_text().split())
        return bool(words & {'avx512_bf16', 'amx_bf16', 'bf16', 'svebf16'})
    return torch.backends.cpu.get_cpu_capability().startswith('SVE')


def environment() -> dict[str, Any]:
    """Return the machine, the versions and the commit."""
    cxx = _output(os.environ.get('CXX', 'c++'), '--version')
    changed = _output('git', 'status', '--porcelain', '--untracked-files=no')
    commit = _output('git', 'rev-parse', 'HEAD')
    return {
        'cpu': _cpu_name(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'cpu_bf16': cpu_has_bf16(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'cuda': torch.version.cuda if torch.cuda.is_available() else None,
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
        'torch': torch.__version__.split('+')[0],
        'timm': timm.__version__,
        'timm_res2net': timm_res2net.__version__,
        'numpy': np.__version__,
        'compiler': cxx.splitlines()[0] if cxx else None,
        'commit': commit and commit + (' with changes' if changed else ''),
    }
