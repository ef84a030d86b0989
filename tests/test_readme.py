"""The documentation: what it prints runs, its links lead somewhere, and its figures are those of
the committed files.
"""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import claim, script
from benchmarks.suite import run
from benchmarks.suite.answer import time_ratio
from tests.common import ROOT, python, random_weights
from tests.hub.client import environment
from tests.hub.server import hub
from timm_res2net import cli
from timm_res2net.prediction import DIGITS

PAGES = [
    'README.md', 'CHANGELOG.md', '.github/CONTRIBUTING.md', 'benchmarks/README.md',
    'benchmarks/trainings/README.md', 'hub_configs/README.md', 'tests/integration/README.md',
    'timm_res2net/convert/README.md', 'timm_res2net/export/README.md', 'timm_res2net/hub/README.md',
    'timm_res2net/weights/README.md',
]  # fmt: skip


def read(page: str) -> str:
    return (ROOT / page).read_text()


# --- what a page prints ---------------------------------------------------------------------------

Step = str | tuple[str, ...]  # a block of Python, or the words of a command


def commands(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of some shell lines, as words."""
    for line in text.replace('\\\n', ' ').splitlines():
        parts = shlex.join(shlex.split(line, comments=True)).split("'&&'")
        yield from (tuple(shlex.split(part)) for part in parts if part)


def steps(page: str) -> Iterator[Step]:
    """What a page prints, in order; in sentences only commands that have arguments."""
    for language, block, inline in re.findall(
        r'^```(\w+)\n(.*?)^```|`([^`]+)`', read(page), re.DOTALL | re.MULTILINE
    ):
        if language == 'python':
            yield block
        elif language == 'sh':
            yield from commands(block)
        elif re.match(r'(timm-res2net \S+|python -m \S+) [^{]', ' '.join(inline.split())):
            yield from commands(' '.join(inline.split()))


STEPS = {page: list(dict.fromkeys(steps(page))) for page in PAGES}
COMMANDS = [step for page in PAGES for step in STEPS[page] if isinstance(step, tuple)]
# Programs that are not this project's; other tests or CI run them.
WRITE = ('benchmarks.tables', 'benchmarks.claim')
OTHERS = {'pip', 'pytest', 'bash', 'curl', 'hf', 'torchrun', 'pre-commit'}
# Libraries that need environments of their own; test_recorded.py has their blocks.
RECORDED = ('fastai', 'lightning', 'mmpretrain', 'captum')


@pytest.mark.filterwarnings('ignore:.* found in sys.modules:RuntimeWarning')
def test_commands_parse(monkeypatch, tmp_path):
    """Every program is known, and every command and script has its options."""

    def parse_and_stop(self, *args):
        parse(self, *args)
        sys.exit(0)

    parse = script.Script.parse
    monkeypatch.setattr(script.Script, 'parse', parse_and_stop)
    monkeypatch.setattr(cli, 'run_command', lambda args: args.command)
    # what the machine has is not the README's matter
    monkeypatch.setattr(run, 'refuse_impossible', lambda cell: None)
    monkeypatch.setattr(script, 'require', lambda *names: None)
    monkeypatch.setattr(run, 'measure_cells', lambda *args, **kwargs: sys.exit(0))
    monkeypatch.chdir(tmp_path)
    seen = set()
    for program, *rest in COMMANDS:
        if program == 'timm-res2net' and rest[0] not in ('run', 'COMMAND', '--help'):
            seen.add(cli.main(rest))
        elif rest[:1] == ['-m'] and rest[1].startswith('benchmarks.') and rest[1] not in WRITE:
            monkeypatch.setattr(sys, 'argv', rest[1:])
            with pytest.raises(SystemExit) as stop:
                runpy.run_module(rest[1], run_name='__main__', alter_sys=True)
            assert stop.value.code in (0, None), rest
        elif rest[:3] == ['-m', 'benchmarks', 'run'] and '152d' not in rest:  # a pair to be added
            with pytest.raises(SystemExit) as stop:
                sys.exit(run.main(rest[2:]))
            assert stop.value.code in (0, None), rest
        else:
            assert program in OTHERS | {'python', 'timm-res2net'}, program
    assert seen >= {'predict', 'convert', 'push', 'pull', 'check', 'export'}


# --- running a page -------------------------------------------------------------------------------

# Words of commands that stand for others: nothing is downloaded, and the network is small.
REPLACED = {'res2net50_se': 'test_res2net_se', 'NAME': 'test_res2net_se'}


def checkpoint(path: Path) -> None:
    """Write a checkpoint, by its name a record of train.py."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = random_weights()
    record = {'arch': 'test_res2net_se', 'state_dict': weights}
    torch.save(record if path.name.endswith('.tar') else weights, path)


def class_folders(path: Path) -> None:
    """Four images in each of ten folders, more than a batch of the README."""
    for name in 'abcdefghij':
        (path / name).mkdir(parents=True)
        for i in range(4):
            Image.new('RGB', (8, 8)).save(path / name / f'{i}.png')


FILES: dict[str, Callable[[Path], object]] = {
    'photo.jpg': lambda path: Image.open(DIGITS).convert('RGB').save(path),
    'train.py': lambda path: path.write_text("import timm\nassert timm.is_model('res2net50_se')"),
    'classes.txt': lambda path: path.write_text('\n'.join('abcdefghij')),
    'output/train/RUN/model_best.pth.tar': checkpoint,
    'output/train/flowers/model_best.pth.tar': checkpoint,
    'DATA/train': class_folders,
    'res2net50_26w_4s-06e79181.pth': checkpoint,
}
"""Files that the pages take for granted, by their names there, and how a small one is made."""

# Told steps. Weights that would be downloaded are random.
RUN = """
import json, sys
import timm, torch
from timm_res2net.cli import main

torch.set_num_threads(1)
builder = sys.modules['timm.models._builder']
load = builder.load_pretrained
from timm_res2net.models.loading import prepare_weights as prepare

def offline(model, pretrained_cfg, **kwargs):
    if pretrained_cfg.get('file') or (pretrained_cfg.get('hf_hub_id') or '').startswith('me/'):
        load(model, pretrained_cfg, **kwargs)

builder.load_pretrained = offline
zoo = sys.modules['timm_res2net.models.res2net_zoo']
zoo.prepare_weights = lambda cfg, cache_dir: None if cfg.url else prepare(cfg, cache_dir)
names = {'__name__': '__main__'}
for step in json.load(sys.stdin):
    print(step, file=sys.stderr)
    if isinstance(step, list) and step[0] == 'timm-res2net':
        assert main(step[1:]) in (0, 3)  # 3: a machine that is too busy to measure
    else:
        exec(step if isinstance(step, str) else step[2], names)
"""


def is_run(page: str, step: Step) -> bool:
    """Whether it is a block, or a command of the pages that go from training to the Hub."""
    if isinstance(step, str):
        elsewhere = '|'.join((*RECORDED, 'ray'))  # integration/test_run.py has its block
        return not re.search(rf'^(import|from) ({elsewhere})\b', step, re.MULTILINE)
    if page not in ('README.md', 'timm_res2net/hub/README.md') or '--help' in step:
        return False
    return step[0] == 'timm-res2net' or step[:2] == ('python', '-c')


@pytest.mark.slow
@pytest.mark.parametrize('page', [p for p in PAGES if '```python' in read(p)])
def test_a_page_runs(page, tmp_path):
    """In its order, in one folder, with a small network and a Hub of the tests."""
    for package in ('segmentation_models_pytorch', 'transformers', 'openvino', 'onnxruntime'):
        if re.search(rf'^(import|from) {package}\b', read(page), re.MULTILINE):
            pytest.importorskip(package, reason='needs an extra')
    todo = [
        step if isinstance(step, str) else [REPLACED.get(word, word) for word in step]
        for step in STEPS[page]
        if is_run(page, step)
    ]
    work = tmp_path / 'work'
    work.mkdir()
    for name, make in FILES.items():
        make(work / name)
    with hub() as server:
        env = environment(server.url, tmp_path / 'home')
        done = python('-W', 'ignore', '-c', RUN, cwd=work, env=env, input=json.dumps(todo))
    assert done.returncode == 0, done.stderr


# --- links and figures ----------------------------------------------------------------------------


@pytest.mark.parametrize('page', PAGES)
def test_links(page):
    """Paths exist, and an anchor is a heading of its page."""
    for target in re.findall(r'\]\(([^)\s]+)\)', read(page)):
        if target.startswith('https://'):
            continue
        path, _, anchor = target.partition('#')
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        headings = re.findall(r'^#+ (.*)$', file.read_text(), re.MULTILINE) if anchor else []
        slugs = {re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-') for text in headings}
        assert not anchor or anchor in slugs, target


def test_every_page_is_here():
    there = {
        str(path.relative_to(ROOT))
        for folder in ('', '.github', 'benchmarks', 'hub_configs', 'tests', 'timm_res2net')
        for path in (ROOT / folder).glob('*.md' if folder in ('', 'hub_configs') else '**/*.md')
    }
    assert {name for name in there if 'benchmarks/results/' not in name} == set(PAGES)


def test_figures():
    """Speed in READMEs is what the committed runs say."""
    files = claim.load_files()
    frozen = [time_ratio(claim.find(files, name)) for name in ('main_frozen', 'frozen_deploy')]
    plain = [
        time_ratio(
            claim.find(files, 'deploy', layout=layout, precision=precision, batch=batch)
        ).median
        for layout in ('channels_last', 'contiguous')
        for precision in ('fp32', 'bf16-weights')
        for batch in (1, 8)
    ]
    export = ' '.join(read('timm_res2net/export/README.md').split())
    assert f'takes × {min(plain):.2f} to × {max(plain):.2f} of the time of the plain' in export
    assert f'× {frozen[0].median:.2f} of the time of an equally compiled resnet50' in export
    assert f'× {frozen[1].median:.2f} in the deploy form' in export
    int8 = [
        time_ratio(claim.find(files, pair, precision='int8', threads=1)).median
        for pair in ('main_openvino', 'main_onnxruntime')
    ]
    told = '× {:.2f} of the time of resnet50 in OpenVINO, and × {:.2f} in ONNX Runtime'
    assert told.format(*int8) in export
