"""Measure the memory that converting a checkpoint of about 300 MB needs.

    python -m benchmarks.convert_memory

Each file holds random weights of a res2net200_vd_26w_4s, or of a widened article network, and is
converted to a folder in its own process. The figure is the peak resident memory of that process
beyond what it held before, with everything imported. Pages mapped from the file count.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import timm_res2net

from .script import Script

MODEL = 'res2net200_vd_26w_4s'  # 76 million parameters
CHILD = """
import sys
import timm_res2net

def status(field):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

timm_res2net.convert_checkpoint(sys.argv[1], sys.argv[2])  # a small file, for imports
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # resets the peak
before = status('VmRSS')
timm_res2net.convert_checkpoint(sys.argv[3], sys.argv[4])
print(status('VmHWM') - before)
"""


def _paddle(state_dict: dict[str, torch.Tensor], path: Path, protocol: int) -> None:
    plain = path.with_suffix('.plain')
    torch.save(state_dict, plain)
    made = path.with_suffix('.made')
    timm_res2net.convert_checkpoint(plain, made, to='paddle', model=MODEL)
    with open(made, 'rb') as file:
        arrays = pickle.load(file)
    with open(path, 'wb') as file:
        pickle.dump(arrays, file, protocol)
    for leftover in (plain, made):
        leftover.unlink()


def _blog(state_dict: dict[str, torch.Tensor], path: Path) -> None:
    model: Any = timm.create_model('res2net50_16w_4s_se', channels=(128, 256, 512, 1024))
    plain = path.with_suffix('.made')
    save_for_hf(model, str(plain), model_args=model.model_args, safe_serialization=True)
    timm_res2net.convert_checkpoint(plain, path, to='article')


FILES: dict[str, Callable[[dict[str, torch.Tensor], Path], None]] = {
    '.pth of torch.save': torch.save,
    '.pth of torch.save before 1.6': lambda weights, path: torch.save(
        weights, path, _use_new_zipfile_serialization=False
    ),
    '.safetensors': save_file,
    '.pdparams, protocol 4': lambda weights, path: _paddle(weights, path, 4),
    '.pdparams, protocol 2': lambda weights, path: _paddle(weights, path, 2),
    "the article's .pth, rotated and with biases": _blog,
}
"""Functions that write each kind of file."""


def measure(path: Path, small: Path, folder: Path) -> int:
    """Return the peak memory of converting a file, in bytes beyond what the process held before.

    Args:
        path: The file.
        small: A small file that the process converts first.
        folder: Where the results go.
    """
    done = subprocess.run(
        [sys.executable, '-c', CHILD, str(small), str(folder / 's'), str(path), str(folder / 'o')],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def main(argv: list[str] | None = None) -> None:
    """Measure every kind of file and write the results."""
    script = Script('convert_memory', __doc__)
    script.parse(argv)
    cells = {}
    weights = timm.create_model(MODEL).state_dict()
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / 'small.pth'
        torch.save(timm.create_model('test_res2net_se').state_dict(), small)
        for i, (kind, write) in enumerate(FILES.items()):
            folder = Path(scratch) / str(i)
            folder.mkdir()
            path = folder / 'weights'
            write(weights, path)
            size, peak = path.stat().st_size, measure(path, small, folder)
            cells[kind] = {'file_bytes': size, 'peak_bytes': peak, 'ratio': round(peak / size, 3)}
            print(f'{kind:<45} {size / 1e6:5.0f} MB, peak × {peak / size:.2f}')
    script.save(cells)


if __name__ == '__main__':
    main()
