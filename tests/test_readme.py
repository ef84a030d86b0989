"""The documentation: what it prints runs after the installs printed before it; its links lead
somewhere, and its figures are those of the committed files.
"""

import ast
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import timm_res2net
from benchmarks import claim
from benchmarks.suite.records import time_ratio
from tests.common import files_of, image, model_folder, randomise, slow_except
from tests.export.test_int8 import draw
from tests.hub.client import environment
from tests.hub.server import Hub, hub
from tests.integration import record_consumers
from tests.newcomer import Newcomer, modules
from timm_res2net import cli
from timm_res2net.folder.folder import write
from timm_res2net.folder.model import Model
from timm_res2net.prediction import DIGITS

ROOT = Path(__file__).parents[1]
PAGES = [
    'README.md', 'CHANGELOG.md', '.github/CONTRIBUTING.md', 'benchmarks/README.md',
    'benchmarks/trainings/README.md', 'hub_configs/README.md', 'tests/integration/README.md',
    'timm_res2net/convert/README.md', 'timm_res2net/export/README.md', 'timm_res2net/hub/README.md',
    'timm_res2net/weights/README.md',
]  # fmt: skip


def read(page: str) -> str:
    return (ROOT / page).read_text()


def words(page: str) -> str:
    """Text of a page on one line."""
    return ' '.join(read(page).split())


# --- what a page prints, and what is installed by then --------------------------------------------


@dataclass(frozen=True)
class Step:
    """A block of Python or a command of a page.

    Attributes:
        page: The page.
        code: The block, '' for a command.
        command: The words of the command.
        installed: Requirements that the page has installed before, besides the package.
        block: Whether it stands in a block, not in a sentence.
    """

    page: str
    code: str
    command: tuple[str, ...]
    installed: frozenset[str]
    block: bool


# Who tries a model has not installed what the tests need.
TESTS = {'timm-res2net[test]', 'timm-res2net[dev]'}


def requirements(arguments: list[str]) -> Iterator[str]:
    """What `pip install` installs, with the package's name in place of the clone's folder."""
    for word in arguments:
        if word.startswith('.['):
            yield from (f'timm-res2net[{extra}]' for extra in word[2:-1].split(','))
        elif word != '.' and not word.startswith('-'):
            yield word


def commands(text: str) -> Iterator[list[str]]:
    """The commands of some shell lines, as words."""
    for line in text.replace('\\\n', ' ').splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), '&&']:
            if word != '&&':
                command.append(word)
            elif command:
                yield command
                command = []


def steps(page: str) -> Iterator[Step]:
    """What a page prints, in order."""
    installed: set[str] = set()
    for language, block, inline in re.findall(
        r'^```(\w+)\n(.*?)^```|`([^`]+)`', read(page), re.DOTALL | re.MULTILINE
    ):
        if language == 'python':
            yield Step(page, block, (), frozenset(installed) - TESTS, True)
        shell = block if language == 'sh' else ''
        if re.match(r'(timm-res2net|python|pip) ', inline):
            shell = ' '.join(inline.split())
        for command in commands(shell):
            if command[:2] == ['pip', 'install']:
                installed |= set(requirements(command[2:]))
                continue
            usable = installed if 'tests.' in ' '.join(command[:3]) else installed - TESTS
            yield Step(page, '', tuple(command), frozenset(usable), not inline)


# pages whose commands run in seconds
QUICK = ['timm_res2net/hub/README.md', 'tests/integration/README.md']

STEPS = {page: list(steps(page)) for page in PAGES}
BLOCKS = [
    pytest.param(
        step, id=f'{page}-{i}', marks=[pytest.mark.slow] if 'export_model' in step.code else []
    )
    for page in PAGES
    for i, step in enumerate(step for step in STEPS[page] if step.code)
]
COMMANDS = [step for page in PAGES for step in STEPS[page] if step.command]
RECORDED = [record_consumers.code_of(name) for name in record_consumers.CONSUMERS]


# --- the environment of the commands --------------------------------------------------------------

# Words of commands that stand for others: nothing is downloaded, and the network is small.
REPLACED = {
    'res2net50_se': 'test_res2net_se', 'NAME': 'test_res2net_se', 'COMMAND': 'list',
    '152d': 'resnet152d:res2net152d',  # a pair that the page adds
}  # fmt: skip

# Programs that are not this project's, and what runs for long; other tests or CI run them.
OTHERS = {'build', 'pytest', 'bash', 'curl', 'hf', 'torchrun', 'pre-commit', 'git', 'ruff', 'mypy'}
LONG = {'export'}


def whole_model(path: Path) -> None:
    """A checkpoint of a network with a Res2Net and a decoder in it."""
    encoder = timm.create_model('test_res2net_se', num_classes=0).state_dict()
    decoder = {'weight': torch.ones(1, 192, 1, 1)}
    parts = {'resnet': encoder, 'decoder': decoder}
    torch.save({f'{name}.{k}': v for name, part in parts.items() for k, v in part.items()}, path)


def foreign(source: str, **kwargs) -> Callable[[Path], None]:
    """Writes a small network as a checkpoint of another project."""

    def write(path: Path) -> None:
        small = dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), base_width=64)
        given = {'name': 'res2net_custom', **small, 'num_classes': 10, **kwargs}
        folder = model_folder(path.with_name(f'.{path.name}'), **given)
        timm_res2net.convert_checkpoint(folder, path, to=source)
        shutil.rmtree(folder)

    return write


def train_checkpoint(path: Path) -> None:
    path.parent.mkdir(parents=True)
    weights = randomise(timm.create_model('test_res2net_se')).state_dict()
    torch.save({'arch': 'test_res2net_se', 'state_dict': weights}, path)


def trained_folder(path: Path) -> None:
    """The embedded model, whose answers bear int8 as those of random weights do not."""
    model = timm.create_model('test_res2net_se', pretrained=True).eval()
    done = timm_res2net.push_to_hub(model, 'me/my_res2net', license='mit', dry_run=True)
    write(Model(model, done.config, done.card), path)


def class_folders(path: Path) -> None:
    """An image in each of ten folders."""
    for name in 'abcdefghij':
        (path / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(path / name / '0.png')


TRAIN = """
import argparse, timm
parser = argparse.ArgumentParser()
parser.add_argument('--model')
assert timm.is_model(parser.parse_known_args()[0].model or 'res2net50_se')
"""

# Files that the pages take for granted, by their names there, and how a small one is made.


def compared(path: Path) -> None:
    """Write a checkpoint, a batch, or the outputs of the one for the other, by the name."""
    model = randomise(timm.create_model('test_res2net_se')).eval()
    contents = {'original.pth': model.state_dict(), 'images.pt': image()}
    torch.save(contents[path.name] if path.name in contents else model(image()).detach(), path)


FILES: dict[str, Callable[[Path], object]] = {
    'photo.jpg': lambda path: Image.open(DIGITS).convert('RGB').save(path),
    'photos': lambda path: draw(path, 40),
    'train.py': lambda path: path.write_text(TRAIN),
    'classes.txt': lambda path: path.write_text('\n'.join('abcdefghij')),
    'cpu.json': lambda path: shutil.copy(ROOT / 'benchmarks/results/cpu.json', path),
    'output/train/RUN/model_best.pth.tar': train_checkpoint,
    'output/train/flowers/model_best.pth.tar': train_checkpoint,
    'DATA/train': class_folders,
    'DATA/validation': class_folders,
    'res2net50_26w_4s-06e79181.pth': foreign('official'),
    'res2net50-w14-s8_3rdparty_8xb32_in1k_20210927-bc967bf1.pth': foreign('mmpretrain'),
    'faster_rcnn_r2_101_fpn_2x_coco-175f1da6.pth': foreign(
        'mmdet', semantics='mmdet', stem_type='deep', stem_width=8, avg_down=True
    ),
    'r2-101.pkl': foreign(
        'detectron2', semantics='detectron2', stem_type='deep', stem_width=8, avg_down=True
    ),
    'Res2Net50_vd_26w_4s_pretrained.pdparams': foreign('paddle', semantics='paddle'),
    'res2net50-f42cf71b.ckpt': lambda path: shutil.copy(ROOT / 'tests/fixtures/mindcv.ckpt', path),
    'my_segmenter.pth': whole_model,
    'original.pth': compared,
    'images.pt': compared,
    'outputs.pt': compared,
    'article.pth': foreign('article', semantics='caffe', attn_layer='se', base_width=16),
}


def lay_out(page: str, folder: Path, server: Hub) -> None:
    """Make the files that the commands of a page read and do not write."""
    written = {
        step.command[step.command.index('--out') + 1]
        for step in STEPS[page]
        if '--out' in step.command and not LONG & set(step.command)
    } - {'cpu.json'}  # the suite is not run
    named = {word for step in STEPS[page] for word in step.command} - written
    for name in named & FILES.keys():
        FILES[name](folder / name)
    if 'my_res2net' in named:
        trained_folder(folder / 'my_res2net')
    if 'me/my_res2net' in named and not any('push' in step.command for step in STEPS[page]):
        server.add('me/my_res2net', files_of(model_folder(folder / '.pushed')))


@pytest.fixture(scope='module')
def server():
    with hub() as server:
        yield server


@pytest.fixture(scope='module')
def newcomer(server, tmp_path_factory):
    process = Newcomer(environment(server.url, tmp_path_factory.mktemp('home')))
    yield process
    process.close()


def is_mention(step: Step) -> bool:
    """Whether a command in a sentence is a name without its arguments."""
    if step.block:
        return False
    first, *rest = step.command
    if first == 'python':
        return rest == ['-m', 'benchmarks']
    return len(rest) < 2 and rest[0] not in ('predict', 'list')


def is_run(step: Step) -> bool:
    """Whether a command is run here."""
    first, *rest = step.command
    if first in OTHERS or set('{>') & set(' '.join(rest)):  # the latter are for a shell
        return False
    if rest == ['hub_configs/generate.py']:  # tests/cli/test_models.py runs it
        return False
    if first == 'python' and rest[0] == '-m':
        # for the recorders in tests/ see test_scripts.py
        return rest[1].partition('.')[0] == 'benchmarks' and not is_mention(step)
    return first in ('timm-res2net', 'python') and not is_mention(step)


@pytest.mark.parametrize('step', BLOCKS)
def test_blocks_import_what_was_installed(step):
    """Whether it is installed here or not: the page names each package before it needs it."""
    imported = set()
    for node in ast.walk(ast.parse(step.code)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or '').partition('.')[0])
    unknown = imported - modules(step.installed) - sys.stdlib_module_names
    assert not unknown, f'{step.page} installs none of {unknown} before this block'


@pytest.mark.parametrize('step', [p for p in BLOCKS if p.values[0].code not in RECORDED])
def test_blocks_run(step, newcomer, tmp_path):
    """With the packages that the page installs before, and no others."""
    code, printed = newcomer.run(step.code, tmp_path, step.installed)
    lacking = re.search(r"^ModuleNotFoundError: No module named '(\w+)", printed, re.MULTILINE)
    if code and lacking and importlib.util.find_spec(lacking[1]) is None:
        assert lacking[1] in modules(step.installed), printed
        pytest.skip(f'{lacking[1]} is not installed here')
    assert code == 0, printed


@pytest.mark.parametrize('long', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('page', slow_except(QUICK, PAGES))
def test_commands_run(page, long, newcomer, server, tmp_path):
    """In the order of the page, in one folder, with a small network and a Hub of the tests."""
    todo = list(dict.fromkeys(step for step in STEPS[page] if step.command and is_run(step)))
    todo = [step for step in todo if bool(LONG & set(step.command)) <= long]
    lay_out(page, tmp_path, server)
    for step in todo:
        command = [REPLACED.get(word, word) for word in step.command]
        code, printed = newcomer.run(command, tmp_path, step.installed)
        lacking = re.search(r"(\w+) is not installed\. Install it: pip install '([^']*)'", printed)
        if code and lacking and importlib.util.find_spec(lacking[1]) is None:
            assert lacking[2] in step.installed, f'{page} does not name {lacking[2]}: {command}'
        else:
            assert code == 0, f'{page}: {shlex.join(command)}\n{printed}'
    server.repos.clear()


def test_every_command_is_known():
    """A new program needs a line in this file that says who runs it."""
    for step in COMMANDS:
        first, *rest = step.command
        assert first in OTHERS | {'timm-res2net', 'python'}, (step.page, step.command)
        if first == 'python' and rest[0] == '-m' and rest[1] not in OTHERS:
            assert importlib.util.find_spec(rest[1]), (step.page, step.command)


def test_commands_parse(monkeypatch):
    """Every `timm-res2net COMMAND` has a command and options that exist."""
    monkeypatch.setattr(cli, 'run_command', lambda args: args.command)
    seen = set()
    for step in COMMANDS:
        first, *rest = step.command
        named = first == 'timm-res2net' and rest[0] not in ('run', 'COMMAND', '--help')
        if named and not is_mention(step):
            seen.add(cli.main(rest))
    assert seen >= {'predict', 'info', 'convert', 'push', 'pull', 'check', 'export', 'show'}


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
    found = {
        str(path.relative_to(ROOT))
        for folder in ('', '.github', 'benchmarks', 'hub_configs', 'tests', 'timm_res2net')
        for path in (ROOT / folder).glob('*.md' if folder in ('', 'hub_configs') else '**/*.md')
    }
    generated = {name for name in found if name.startswith('benchmarks/results/')}
    assert found - generated == set(PAGES)


def test_figures():
    """Speed in READMEs is what the committed runs say."""
    files = claim.load_files()
    se = time_ratio(claim.find(files, 'se'))
    frozen = [time_ratio(claim.find(files, name)) for name in ('main_frozen', 'frozen_deploy')]
    plain = [
        time_ratio(
            claim.find(files, 'deploy', layout=layout, precision=precision, batch=batch)
        ).median
        for layout in ('channels_last', 'contiguous')
        for precision in ('fp32', 'bf16-weights')
        for batch in (1, 8)
    ]
    assert f'`res2net50_se` takes × {se} of the time of `seresnet50`' in words('README.md')
    export = words('timm_res2net/export/README.md')
    assert f'takes × {min(plain):.2f} to × {max(plain):.2f} of the time of the plain' in export
    assert f'× {frozen[0].median:.2f} of the time of an equally compiled resnet50' in export
    assert f'× {frozen[1].median:.2f} in the deploy form' in export
    int8 = [
        time_ratio(claim.find(files, pair, precision='int8', threads=1)).median
        for pair in ('main_openvino', 'main_onnxruntime')
    ]
    told = '× {:.2f} of the time of resnet50 in OpenVINO, and × {:.2f} in ONNX Runtime'
    assert told.format(*int8) in export
