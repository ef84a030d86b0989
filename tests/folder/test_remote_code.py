"""The module for transformers: what it says and does without transformers itself.

tests/integration/test_transformers.py loads models with it.
"""

import json
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.common import change_config, from_folder, image, model_folder
from timm_res2net import check, convert_checkpoint
from timm_res2net.cli import main
from timm_res2net.folder.config import AUTO_MAP, MODULE
from timm_res2net.folder.folder import MODULE_TEXT


@pytest.fixture
def run(monkeypatch):
    """Run the module beside a stand-in for transformers, and return what it defines."""

    class TimmWrapperModel:
        pass

    class TimmWrapperForImageClassification:
        pass

    kinds = (TimmWrapperModel, TimmWrapperForImageClassification)
    fake = SimpleNamespace(**{kind.__name__: kind for kind in kinds})
    monkeypatch.setitem(sys.modules, 'transformers', fake)

    def run() -> dict[str, Any]:
        scope = {'__name__': 'modeling_timm_res2net'}
        exec(compile(MODULE_TEXT, MODULE, 'exec'), scope)
        return {name: scope[name] for name in fake.__dict__} | {'fake': fake}

    return run


def test_its_classes_are_those_of_auto_map(run):
    """They are of their own, because transformers writes to them, under the names of its own."""
    made = run()
    for name, path in AUTO_MAP.items():
        module, kind = path.split('.')
        assert f'{module}.py' == MODULE
        theirs = getattr(made['fake'], kind)
        assert issubclass(made[kind], theirs) and made[kind] is not theirs
        assert name.removeprefix('Auto').removeprefix('Model') in kind


def test_without_the_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm_res2net', None)
    with pytest.raises(ImportError) as error:
        run()
    assert 'package timm_res2net, which is not installed' in str(error.value)
    assert '`pip install .`' in str(error.value)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """A converted folder with the module, `net`, made of one without, `plain`."""
    tmp_path = tmp_path_factory.mktemp('converted')
    plain = model_folder(tmp_path / 'plain', num_classes=3)
    assert 'auto_map' not in json.loads((plain / 'config.json').read_text())
    assert not (plain / MODULE).exists()
    command = ['convert', str(plain), '--out', str(tmp_path / 'net'), '--remote-code']
    assert main(command) == 0
    return tmp_path


def code_finding(folder) -> tuple[str, str]:
    return next(((f.state, f.text) for f in check(folder) if f.what == 'code'), ('', ''))


def test_a_converted_folder(converted, tmp_path):
    """timm loads it as ever; a folder that is made of it keeps the module, unless told not to."""
    folder = converted / 'net'
    assert json.loads((folder / 'config.json').read_text())['auto_map'] == AUTO_MAP
    assert (folder / MODULE).read_text() == MODULE_TEXT
    with torch.no_grad():
        got, expected = (from_folder(path)(image()) for path in (folder, converted / 'plain'))
    assert torch.equal(got, expected)
    assert code_finding(folder)[0] == 'ok'
    convert_checkpoint(folder, tmp_path / 'again')
    assert code_finding(tmp_path / 'again')[0] == 'ok'
    convert_checkpoint(folder, tmp_path / 'without', remote_code=False)
    assert code_finding(tmp_path / 'without') == ('', '')
    assert not (tmp_path / 'without' / MODULE).exists()
    with pytest.raises(ValueError, match=r'mmpretrain cannot hold.*remote_code.*Leave them out'):
        convert_checkpoint(folder, tmp_path / 'w.pth', to='mmpretrain', remote_code=True)


CHANGES = {  # auto_map, and the module
    'another text': (AUTO_MAP, 'import os\n'),
    'no module': (AUTO_MAP, None),
    'another module': ({'AutoModel': 'theirs.Model'}, MODULE_TEXT),
    'another repository': ({'AutoModel': 'you/code--modeling_timm_res2net.Model'}, MODULE_TEXT),
    'no name': ({'AutoModel': 5}, MODULE_TEXT),
}


@pytest.mark.parametrize('case', CHANGES)
def test_code_of_others(case, converted, tmp_path):
    """It is a warning: nothing of this package runs it."""
    folder = tmp_path / 'net'
    shutil.copytree(converted / 'net', folder)
    auto_map, text = CHANGES[case]
    change_config(folder, auto_map=auto_map)
    (folder / MODULE).unlink()
    if text is not None:
        (folder / MODULE).write_text(text)
    state, told = code_finding(folder)
    assert state == 'warning'
    assert 'auto_map' in told and 'trust_remote_code=True' in told
