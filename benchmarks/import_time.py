"""What `import timm_res2net` adds to the time of `import timm`.

    python -m benchmarks.import_time

Fresh processes in pairs, in random order; the figure is the median of the pairs' ratios with a
bootstrap interval. Both sides import timm, then one of them timm_res2net, so that the ratio is
(timm + timm_res2net) / timm; it is taken within a process and, noisier, across a pair.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from pathlib import Path

import timm
import torch

import timm_res2net

from .results import write
from .stats import interval

TIMED = (
    'import time; start = time.perf_counter(); import timm; middle = time.perf_counter(); '
    '{}; end = time.perf_counter(); print(middle - start, end - start)'
)


def sample(extra: str) -> tuple[float, float]:
    """Seconds of `import timm` alone and of all of it, in one fresh process."""
    done = subprocess.run(
        [sys.executable, '-c', TIMED.format(extra)], capture_output=True, text=True, check=True
    )
    alone, both = map(float, done.stdout.split())
    return alone, both


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pairs', type=int, default=30)
    parser.add_argument(
        '--out', type=Path, default=Path(__file__).parent / 'results' / 'import_time.json'
    )
    args = parser.parse_args(argv)
    sample('pass'), sample('import timm_res2net')  # fill the disk's cache and the bytecode's
    within, across, seconds = [], [], []
    for _ in range(args.pairs):
        order = ['pass', 'import timm_res2net']
        random.shuffle(order)
        pair = {extra: sample(extra) for extra in order}
        alone, both = pair['import timm_res2net']
        within.append(both / alone)
        across.append(both / pair['pass'][1])
        seconds.append(both - alone)
    report = {
        'what': 'time of import timm + timm_res2net over import timm',
        'ratio_in_one_process': statistics.median(within),
        'interval_95_in_one_process': interval(within),
        'ratio_across_processes': statistics.median(across),
        'interval_95_across_processes': interval(across),
        'seconds_added': statistics.median(seconds),
        'samples_in_one_process': within,
        'samples_across_processes': across,
        'environment': {
            'python': platform.python_version(),
            'torch': torch.__version__.split('+')[0],
            'timm': timm.__version__,
            'timm_res2net': timm_res2net.__version__,
            'cores': os.cpu_count(),
            'machine': platform.machine(),
        },
        'command': f'python -m benchmarks.import_time --pairs {args.pairs}',
    }
    text = json.dumps(report, indent=2) + '\n'
    write(args.out, text.encode())
    print(text)


if __name__ == '__main__':
    main()
