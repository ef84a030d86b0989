"""Load, deploy, run and release models again and again, and measure whether memory grows.

    python -m benchmarks.soak

Each cycle creates one of four models with the weights of a file, deploys it, runs it on images of
six sizes and two batches, in both memory layouts, and releases it. After each round of four the
resident memory, the open files and the live tensors are counted. The first tenth of the rounds
fills caches and is left out. As a control, safetensors alone reads the same files as often
beforehand. An hour on one thread; Linux only.
"""

import gc
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file

import timm_res2net
from timm_res2net.text import table

from .script import Script

NETWORKS: dict[str, dict[str, Any]] = {
    'res2net50_se': {},
    'res2net50_26w_4s': {},  # timm's
    'res2net50_14w_8s_se': {'features_only': True},
    'hrnet_w18_res2net': {},
}
SIZES = (128, 96, 160, 64, 192, 224)  # px; HRNets take multiples of 32
PARTS = 10


def cycle(name: str, weights: Path, arguments: dict[str, Any]) -> None:
    """Load, deploy, run and release a model."""
    overlay = {'file': str(weights)}
    model: Any = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
    )
    model = timm_res2net.reparameterize_model(model)
    with torch.inference_mode():
        for i, size in enumerate(SIZES):
            x = torch.randn(1 + i % 2, 3, size, size)
            if i < len(SIZES) // 2:
                x = x.to(memory_format=torch.channels_last)
            model(x)


def state() -> dict[str, int]:
    """Return the resident bytes of the process, its open files and the tensors in its objects."""
    gc.collect()
    resident = int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    tensors = sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())
    return {
        'resident': resident,
        'files': len(os.listdir('/proc/self/fd')),
        'tensors': tensors,
    }


def parts_of(samples: Sequence[dict[str, int]]) -> list[dict[str, float]]:
    """Return the medians of each of `PARTS` parts of a series."""
    n = len(samples) // PARTS
    parts = [samples[i * n : (i + 1) * n] for i in range(PARTS)]
    return [{key: median(one[key] for one in part) for key in part[0]} for part in parts]


def growth(parts: Sequence[dict[str, float]], cycles: int) -> float:
    """Return by how many bytes a cycle the memory grows, from the second part to the last."""
    between = cycles * (PARTS - 2) / PARTS  # cycles between the middles of the two
    return (parts[-1]['resident'] - parts[1]['resident']) / between


def report_table(report: dict[str, Any]) -> str:
    """Return the medians of each part of the cycles as a table."""
    rows = [
        (
            f'{i + 1} of {PARTS}',
            f'{part["resident"] / 1e6:,.1f} MB',
            f'{part["files"]:.0f}',
            f'{part["tensors"]:,.0f}',
            f'{control["resident"] / 1e6:,.1f} MB',
        )
        for i, (part, control) in enumerate(zip(report['parts'], report['control'], strict=True))
    ]
    return table(('cycles', 'resident memory', 'open files', 'tensors', 'control: memory'), rows)


def sentence(report: dict[str, Any]) -> str:
    """Return the figures in one sentence."""
    ours, control = (report[key] / 1e3 for key in ('growth', 'control_growth'))
    return (
        f'Over {report["cycles"]:,} cycles of loading, deploying, running and releasing a model, '
        f'the memory of the process grows by {ours:.0f} kB a cycle; reading the files with '
        f'safetensors alone makes it grow by {control:.0f} kB.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('soak', __doc__)
    add = script.parser.add_argument
    add('--rounds', type=int, default=450, help='rounds of four models (default: %(default)s)')
    args = script.parse(argv)
    if args.rounds < PARTS or args.rounds % PARTS:
        script.parser.error(f'--rounds must be a multiple of {PARTS}, got {args.rounds}.')
    if not Path('/proc/self/statm').exists():
        script.parser.error('The memory is read from /proc/self/statm. Run it on Linux.')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f'{name}.safetensors' for name in NETWORKS}
        for name, path in files.items():
            save_file(timm.create_model(name).state_dict(), path, {'format': 'pt'})
        control, samples = [], []
        for _ in range(args.rounds):
            for path in files.values():
                load_file(path)
            control.append(state())
        started = time.process_time()
        for i in range(args.rounds):
            for name, path in files.items():
                cycle(name, path, NETWORKS[name])
            samples.append(state())
            if (i + 1) % 25 == 0:
                print(f'{i + 1} of {args.rounds} rounds: {samples[-1]}', flush=True)
        seconds = time.process_time() - started
    cycles = args.rounds * len(NETWORKS)
    parts, control_parts = parts_of(samples), parts_of(control)
    report = {
        'networks': list(NETWORKS),
        'sizes': SIZES,
        'cycles': cycles,
        'cpu_seconds': round(seconds),
        'parts': parts,
        'control': control_parts,
        'growth': round(growth(parts, cycles)),
        'control_growth': round(growth(control_parts, cycles)),
    }
    print(report_table(report))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
