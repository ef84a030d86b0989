"""The documentation: its code runs, its commands parse, its links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import timm

import timm_res2net
from benchmarks import claim
from tests.integration import record_consumers
from timm_res2net import cli
from timm_res2net.cli.models import rows

ROOT = Path(__file__).parents[1]
PAGES = [
    'README.md', 'CHANGELOG.md', '.github/CONTRIBUTING.md', 'benchmarks/README.md',
    'hub_configs/README.md', 'tests/integration/README.md', 'timm_res2net/convert/README.md',
    'timm_res2net/export/README.md', 'timm_res2net/hub/README.md', 'timm_res2net/weights/README.md',
]  # fmt: skip


def read(page: str) -> str:
    return (ROOT / page).read_text()


def words(page: str) -> str:
    """Text of a page on one line."""
    return ' '.join(read(page).split())


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', read(page), re.DOTALL | re.MULTILINE)


RECORDED = [record_consumers.code_of(name) for name in record_consumers.CONSUMERS]
PYTHON = [
    pytest.param(
        block, id=f'{page}-{i}', marks=[pytest.mark.slow] if 'export_model' in block else []
    )
    for page in PAGES
    for i, block in enumerate(blocks(page, 'python'))
    if block not in RECORDED
]
COMMANDS = [
    (page, line)
    for page in PAGES
    for line in (
        *'\n'.join(blocks(page, 'sh')).replace('\\\n', '').splitlines(),
        *re.findall(r'`(timm-res2net \w[^`]* [^`]*|python -m [^`]*)`', read(page)),
    )
]


@pytest.mark.parametrize('block', PYTHON)
def test_python_code_runs(block, tmp_path, monkeypatch):
    """Weights that would be downloaded are random."""
    for name in re.findall(r'^(?:import|from) (\w+)', block, re.MULTILINE):
        pytest.importorskip(name, reason='needs the extra export or integration')
    create = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        embedded = name.startswith(('test_', 'local-dir:'))
        return create(name, pretrained=pretrained and embedded, **kwargs)

    monkeypatch.setattr(timm, 'create_model', offline)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, 'README.md', 'exec'), {})


def test_commands_parse(monkeypatch):
    """Every `timm-res2net VERB` has a verb and options that exist, every `python -m` a module."""
    monkeypatch.setattr(cli, 'run_verb', lambda verbs, argv: verbs.parser.parse_args(argv))
    seen = set()
    for page, line in COMMANDS:
        tokens = shlex.split(line.partition('&&')[2] or line, comments=True)
        if tokens[:1] == ['timm-res2net'] and tokens[1] not in ('run', 'VERB'):
            seen.add(cli.main(tokens[1:]).verb)
        for module in re.findall(r'python -m ((?:benchmarks|tests|timm_res2net)[\w.]*)', line):
            assert importlib.util.find_spec(module), (page, line)
    assert seen >= {'demo', 'info', 'convert', 'push', 'pull', 'check', 'export', 'show'}


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


def test_the_public_names():
    section = read('README.md').split('## Help')[1].split('\n## ')[0]
    named = set(re.findall(r'`(\w+)`', section.split('explains one of')[1].split('\n- ')[0]))
    assert named == set(timm_res2net.__all__)


def test_the_table_of_models():
    """Ten rows at most, as the package has them."""
    known = {row.model: row for row in rows()}
    table = read('README.md').split('## Models')[1].split('\n## ')[0]
    lines = [line for line in table.splitlines() if line.startswith('| `')]
    assert 5 <= len(lines) <= 10
    for line in lines:
        name, params, top1, publisher, license = (
            cell.strip().strip('`') for cell in line.strip('|').split('|')
        )
        row = known[name]
        assert params == f'{row.params / 1e6:.1f} M'
        assert top1 == ('' if row.top1 is None else f'{row.top1:.2f} %')
        assert publisher.partition(' ')[0] == (row.top1_source or '').partition(' ')[0]
        assert license == (row.license or '')


def test_figures():
    """Speed in READMEs is what the committed runs say."""
    files = claim.load_files()
    pairs = {name: claim.find(files, name).ratio() for name in ('se', 'aligned')}
    frozen = [claim.find(files, name).ratio() for name in ('main_frozen', 'frozen_deploy')]
    plain = [
        claim.find(files, 'deploy', layout=layout, precision=precision, batch=batch).ratio().median
        for layout in ('channels_last', 'contiguous')
        for precision in ('fp32', 'bf16-weights')
        for batch in (1, 8)
    ]
    assert f'`res2net50_se` takes × {pairs["se"]} of the time of `seresnet50`' in words('README.md')
    export = words('timm_res2net/export/README.md')
    assert f'takes × {min(plain):.2f} to × {max(plain):.2f} of the time of the plain' in export
    assert f'(× {pairs["aligned"]})' in export
    assert f'× {frozen[0].median:.2f} of the time of an equally compiled resnet50' in export
    assert f'× {frozen[1].median:.2f} in the deploy form' in export
