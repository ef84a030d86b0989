"""Measure loading weights from a warm cache of the Hub against torch.load of the same weights.

    python -m benchmarks.load_time

The cache has the layout of huggingface_hub's, and the network is off. In each round every way runs
once, in random order and in its own process, which has loaded the package's small model before.
Figures are medians of the rounds' ratios to torch.load with bootstrap intervals. The files are in
the page cache, so the disk is not measured.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from safetensors.torch import save_file

import timm_res2net
from timm_res2net.stats import ratio
from timm_res2net.text import table

from .script import Script

MODEL = 'res2net50_se'
SOURCE = 'timm/res2net50_26w_4s.in1k'  # holds its weights
REPO = 'me/warm'
COMMIT = '0' * 40
WAYS = {
    'torch.load of a .pth, load_state_dict': """
state_dict = torch.load(folder + '/weights.pth', map_location='cpu', weights_only=True)
model = timm.create_model(name)
model.load_state_dict(state_dict)
""",
    'res2net50_se, pretrained=True (gates made)': """
model = timm.create_model(name, pretrained=True)
""",
    'hf-hub: of a pushed model': """
model = timm.create_model('hf-hub:' + repo, pretrained=True)
""",
    'local-dir: of the same folder': """
model = timm.create_model('local-dir:' + folder + '/model', pretrained=True)
""",
    'timm.create_model alone, no weights': """
model = timm.create_model(name)
""",
}
"""Python code that makes `model`, by name."""
BASE, NAMED, *_ = WAYS

CHILD = """
import json, os, sys, time
import timm, torch, timm_res2net
torch.set_num_threads(1)
way, name, repo, folder = sys.argv[1:]

def status(field):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

timm.create_model('test_res2net_se', pretrained=True)  # for imports
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # resets the peak
before, start = status('VmRSS'), time.perf_counter()
exec(way)
seconds = time.perf_counter() - start
print(json.dumps({'seconds': seconds, 'peak_bytes': status('VmHWM') - before}))
"""


def _cache(home: Path, repo: str, files: list[Path]) -> None:
    """Put the files of a repository into a cache."""
    folder = home / 'hub' / f'models--{repo.replace("/", "--")}'
    snapshot = folder / 'snapshots' / COMMIT
    for path in (folder / 'blobs', folder / 'refs', snapshot):
        path.mkdir(parents=True)
    (folder / 'refs' / 'main').write_text(COMMIT)
    for file in files:
        blob = folder / 'blobs' / file.name
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)


def _lay_out(folder: Path) -> int:
    """Write the same random weights as .pth, as a folder and as a cache; return their size in
    bytes.
    """
    torch.manual_seed(0)
    model: Any = timm.create_model(MODEL)
    torch.save(model.state_dict(), folder / 'weights.pth')
    done = timm_res2net.push_to_hub(model, REPO, license='other', dry_run=True)
    plain = folder / 'model'
    plain.mkdir()
    (plain / 'config.json').write_text(done.config.to_json())
    save_file(model.state_dict(), plain / 'model.safetensors', {'format': 'pt'})
    _cache(folder / 'home', REPO, list(plain.iterdir()))
    ungated: Any = timm.create_model(MODEL, attn_layer='')  # the published weights have no gates
    (folder / 'source').mkdir()
    weights = folder / 'source' / 'model.safetensors'
    save_file(ungated.state_dict(), weights, {'format': 'pt'})
    _cache(folder / 'home', SOURCE, [weights])
    return (folder / 'weights.pth').stat().st_size


def _measure(way: str, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, '-c', CHILD, WAYS[way], MODEL, REPO, str(folder)],
        env={
            **os.environ,
            'HF_HOME': str(folder / 'home'),
            'HF_HUB_OFFLINE': '1',
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def report_table(report: dict[str, Any]) -> str:
    """Return the results as a table."""
    rows = [
        (
            way,
            '× {:.2f} [{:.2f}, {:.2f}]'.format(*cell['time_ratio']),
            f'{median(cell["seconds"]):.2f}',
            f'× {cell["peak_over_file"]:.2f}',
        )
        for way, cell in report['ways'].items()
    ]
    return table(('way', 'time', 'seconds', 'peak memory of the file'), rows)


def sentence(report: dict[str, Any]) -> str:
    """Return the main figure in one sentence."""
    middle, low, high = report['ways'][NAMED]['time_ratio']
    return (
        f'`{report["model"]}` with pretrained weights from a warm cache takes × {middle:.2f} '
        f'[{low:.2f}, {high:.2f}] of the time of building it and loading the same weights from a '
        '.pth.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('load_time', __doc__)
    script.parser.add_argument(
        '--rounds', type=int, default=15, help='rounds (default: %(default)s)'
    )
    args = script.parse(argv)
    torch.set_num_threads(1)  # for the recorded environment: the measured processes use one too
    rng = random.Random(0)
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        size = _lay_out(Path(scratch))
        for _ in range(args.rounds):
            for way in rng.sample(list(WAYS), len(WAYS)):
                samples[way].append(_measure(way, Path(scratch)))
    cells = {}
    for way, rows in samples.items():
        seconds, peaks = ([row[key] for row in rows] for key in ('seconds', 'peak_bytes'))
        base = [row['seconds'] for row in samples[BASE]]
        time = ratio(seconds, base)
        peak = median(peaks) / size
        cells[way] = {
            'seconds': seconds,
            'peak_bytes': peaks,
            'time_ratio': [round(value, 3) for value in time],
            'peak_over_file': round(peak, 3),
        }
    report = {'model': MODEL, 'file_bytes': size, 'ways': cells}
    print(report_table(report))
    script.save(report)


if __name__ == '__main__':
    main()
