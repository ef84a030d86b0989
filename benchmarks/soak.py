"""Load, deploy, run and release models for an hour, and measure whether memory grows.

    python -m benchmarks.soak

Each cycle creates one of four models with the weights of a file, deploys it, runs it on images of
six sizes and two batches, in both memory layouts, and releases it. After each cycle the resident
memory, the open files and the tensors that Python still knows are counted. The first tenth of the
cycles is for caches to fill. Linux only.
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
from safetensors.torch import save_file

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


def growth(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the second and the last tenth of a series.

    Args:
        values: At least `PARTS` values.
    """
    n = len(values) // PARTS
    return median(values[n : 2 * n]), median(values[-n:])


def report_table(report: dict[str, Any]) -> str:
    """Return the medians of each tenth of the cycles as a table."""
    rows = [
        (
            f'{i + 1} of {PARTS}',
            f'{part["resident"] / 1e6:,.0f} MB',
            f'{part["files"]:.0f}',
            f'{part["tensors"]:,.0f}',
        )
        for i, part in enumerate(report['parts'])
    ]
    return table(('cycles', 'resident memory', 'open files', 'tensors'), rows)


def sentence(report: dict[str, Any]) -> str:
    """Return the figures in one sentence."""
    first, last = report['growth']['resident']
    return (
        f'In {report["cycles"]:,} cycles of loading, deploying, running and releasing a model, '
        f'{report["minutes"]:.0f} minutes on one thread, the resident memory went from '
        f'{first / 1e6:,.0f} to {last / 1e6:,.0f} MB (medians of the second and the last tenth); '
        f'open files {report["growth"]["files"][0]:.0f} and {report["growth"]["files"][1]:.0f}, '
        f'tensors {report["growth"]["tensors"][0]:.0f} and {report["growth"]["tensors"][1]:.0f}.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('soak', __doc__)
    add = script.parser.add_argument
    add('--minutes', type=float, default=60, help='how long (default: %(default)s)')
    add('--networks', nargs='+', choices=NETWORKS, default=[*NETWORKS], help='some of them')
    args = script.parse(argv)
    if not Path('/proc/self/statm').exists():
        script.parser.error('The memory is read from /proc/self/statm. Run it on Linux.')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    samples: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f'{name}.safetensors' for name in args.networks}
        for name, path in files.items():
            save_file(timm.create_model(name).state_dict(), path, {'format': 'pt'})
        started = time.monotonic()
        # whole rounds of all networks, and enough of them for the parts
        while time.monotonic() < started + 60 * args.minutes or len(samples) < 2 * PARTS:
            for name, path in files.items():
                cycle(name, path, NETWORKS[name])
                samples.append(state())
                if len(samples) % 100 == 0:
                    print(f'{len(samples)} cycles: {samples[-1]}', flush=True)
        minutes = (time.monotonic() - started) / 60
    n = len(samples) // PARTS
    keys = samples[0].keys()
    report = {
        'networks': args.networks,
        'sizes': SIZES,
        'cycles': len(samples),
        'minutes': round(minutes, 1),
        'parts': [
            {key: median(one[key] for one in samples[i * n : (i + 1) * n]) for key in keys}
            for i in range(PARTS)
        ],
        'growth': {key: growth([one[key] for one in samples]) for key in keys},
    }
    print(report_table(report))
    print(sentence(report))
    script.save(report)


if __name__ == '__main__':
    main()
