"""The scripts of the clone with the base install alone: their help, and what is missing."""

import ast
import os
import re
from pathlib import Path

import pytest

from tests.newcomer import ROOT, Newcomer, missing, modules

SCRIPTS = sorted(
    str(path.relative_to(ROOT).with_suffix('')).replace('/', '.').removesuffix('.__main__')
    for folder in ('benchmarks', 'tests')
    for path in (ROOT / folder).rglob('*.py')
    if re.search(r"^if __name__ == '__main__':", path.read_text(), re.MULTILINE)
    if path.stem != 'newcomer'
)
COMMANDS = (
    'benchmarks',
)  # needs a command; its extras are tested with the README and with the suite
RECORDERS = tuple(name for name in SCRIPTS if '.record_' in name)


def file_of(module: str) -> Path | None:
    """The file of one of the project's modules."""
    path = ROOT / module.replace('.', '/')
    return next((p for p in (path.with_suffix('.py'), path / '__init__.py') if p.is_file()), None)


def needs(module: str, seen: set[str]) -> set[str]:
    """Packages of extras that a script imports, at its top or in its functions, or one of the
    project's modules that it imports. Those of `timm_res2net` and of the suite are left out: they
    check for themselves.
    """
    path = file_of(module)
    if module in seen or path is None or module.startswith(('timm_res2net', 'benchmarks.suite')):
        return set()
    seen.add(module)
    package = module if path.stem == '__init__' else module.rpartition('.')[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(package.split('.')[: len(package.split('.')) - node.level + 1])
            name = f'{base}.{node.module}' if node.level and node.module else node.module or base
            names = [name, *(f'{name}.{alias.name}' for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.partition('.')[0] for name in names}.intersection(missing())
        for name in names:
            found |= needs(name, seen)
    return found


def declared(module: str) -> set[str] | None:
    """Packages that a script passes to its frame, which looks for them; None without a frame."""
    calls = [
        node
        for node in ast.walk(ast.parse(file_of(module).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'Script'
    ]
    return {arg.value for arg in calls[0].args[2:]} if calls else None


@pytest.fixture(scope='module')
def newcomer():
    process = Newcomer({**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    yield process
    process.close()


def test_scripts_are_found():
    assert {'benchmarks', 'benchmarks.tables', 'benchmarks.trainings.train_detector'} < {*SCRIPTS}
    assert len(RECORDERS) >= 3
    assert needs('benchmarks.quantize', set()) >= {'mlxtend', 'sklearn'}


@pytest.mark.parametrize('module', SCRIPTS)
def test_help(module, newcomer, tmp_path):
    code, printed = newcomer.run(['python', '-m', module, '--help'], tmp_path)
    assert code == 0, printed
    assert printed.startswith(f'usage: python -m {module} ')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('module', [m for m in SCRIPTS if m not in COMMANDS + RECORDERS])
def test_a_missing_package_is_one_sentence(module, newcomer, tmp_path):
    """It names the extra, which has everything that the script imports."""
    code, printed = newcomer.run(['python', '-m', module], tmp_path)
    packages = declared(module)
    if not packages:  # without the frame it has done its work, and imported what that needs
        assert code == 0, printed
        assert packages is None or not needs(module, set())
        return
    assert needs(module, set()) <= packages
    assert code == 1
    assert printed.count('\n') == 1, printed
    found = re.search(r"\w+ is not installed\. Install it: pip install '([^']+)'\.$", printed)
    assert packages <= modules(frozenset({found[1]}))


@pytest.mark.parametrize('module', RECORDERS)
def test_recorders_say_what_to_install(module, newcomer, tmp_path):
    code, printed = newcomer.run(['python', '-m', module], tmp_path)
    if code == 2:
        assert 'the following arguments are required' in printed
        return
    assert code == 1
    assert printed.count('\n') == 1, printed
    assert printed.startswith(f'python -m {module}: ')
    assert 'pip install' in printed
