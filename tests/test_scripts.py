"""The scripts of the clone: their help, and what they say if a package is missing."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.common import ROOT


def file_of(module: str) -> Path:
    return (ROOT / module.replace('.', '/')).with_suffix('.py')


SCRIPTS = sorted(
    str(path.relative_to(ROOT).with_suffix('')).replace('/', '.').removesuffix('.__main__')
    for path in (ROOT / 'benchmarks').rglob('*.py')
    if re.search(r"^if __name__ == '__main__':", path.read_text(), re.MULTILINE)
)
# those that pass packages of an extra to their frame
NEEDY = [
    name
    for name in SCRIPTS
    if name != 'benchmarks'
    if re.search(r"\bScript\('[\w.]+', __doc__, '", file_of(name).read_text())
]


def run(module: str, *words: str) -> str | int | None:
    """Run a script in this process, and return how it exits."""
    sys.argv = [module, *words]
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    return stop.value.code


def test_scripts_are_found():
    assert {'benchmarks.quantize', 'benchmarks.forms'} <= {*NEEDY}
    assert {'benchmarks', 'benchmarks.tables', 'benchmarks.trainings.train_detector'} < {*SCRIPTS}


@pytest.mark.filterwarnings('ignore:.* found in sys.modules:RuntimeWarning')
@pytest.mark.parametrize('module', SCRIPTS)
def test_help(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [])
    monkeypatch.chdir(tmp_path)
    assert run(module, '--help') == 0
    assert capsys.readouterr().out.startswith(f'usage: python -m {module} ')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings('ignore:.* found in sys.modules:RuntimeWarning')
@pytest.mark.parametrize('module', NEEDY)
def test_a_missing_package_is_one_sentence(module, tmp_path, monkeypatch, capsys):
    """It names an extra, before the script's work begins."""
    monkeypatch.setattr(sys, 'argv', [])
    monkeypatch.chdir(tmp_path)
    none = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr('timm_res2net.files.importlib', none)
    assert run(module) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"\w+ is not installed\. Install it: pip install 'timm-res2net\[", line)
