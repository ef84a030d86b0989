"""Measure what `import timm_res2net` adds to the time of `import timm`.

    python -m benchmarks.import_time

New processes run in pairs, in random order: both import timm, one of them also timm_res2net. The
figure is the median of the ratios (timm + timm_res2net) / timm with a bootstrap interval, taken
within one process and, with more noise, across the two processes of a pair.
"""

import random
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from timm_res2net.stats import interval

from .script import Script

TIMED = (
    'import time; start = time.perf_counter(); import timm; middle = time.perf_counter(); '
    '{}; end = time.perf_counter(); print(middle - start, end - start)'
)


def sample(extra: str) -> tuple[float, float]:
    """Return the seconds of `import timm` and of that plus `extra`, in one new process."""
    done = subprocess.run(
        [sys.executable, '-c', TIMED.format(extra)], capture_output=True, text=True, check=True
    )
    alone, both = map(float, done.stdout.split())
    return alone, both


def sentence(report: Mapping[str, Any]) -> str:
    """Return the figures in one sentence."""
    added = 100 * (report['ratio_in_one_process'] - 1)
    return (
        f'Importing this package adds {added:.1f} % ({1000 * report["seconds_added"]:.0f} ms) to '
        'the time of `import timm`.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('import_time', __doc__)
    script.parser.add_argument(
        '--pairs', type=int, default=30, help='pairs of processes (default: %(default)s)'
    )
    args = script.parse(argv)
    sample('pass'), sample('import timm_res2net')  # fill the disk cache and write bytecode
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
    }
    script.save(report)
    print(sentence(report))


if __name__ == '__main__':
    main()
