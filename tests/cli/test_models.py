"""The registered models as `list` and `info` show them, the README's choice, and hub_configs."""

import json

import pytest
import timm
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from tests.common import HRNETS, NAMES, ROOT, python, slow_except
from timm_res2net.cli import main
from timm_res2net.cli.models import rows
from timm_res2net.convert import COUNTS

TAGS = {
    full: cfg for name in (*NAMES, *HRNETS) for full, cfg in get_arch_pretrained_cfgs(name).items()
}
WITH_WEIGHTS = [full for full, cfg in TAGS.items() if cfg.has_weights]


def listed(capsys, *words: str) -> list[str]:
    """The names that `list` prints."""
    assert main(['list', *words]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    return [line.split()[1] for line in lines]


def test_the_list(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    assert sorted(listed(capsys)) == sorted(TAGS)
    assert set(COUNTS) == {*NAMES, *HRNETS}
    assert main(['list']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 80  # fits a terminal
    row = next(line for line in lines if 'res2net200_vd_26w_4s.ssld_in1k' in line)
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[1:] == ['76.22', '15.71', '85.13', 'apache-2.0']


def test_the_list_as_json(capsys):
    assert main(['list', '*_se', '--json']) == 0
    known = {row['model']: row for row in json.loads(capsys.readouterr().out)}
    assert {name.split('.')[0] for name in known} == {n for n in NAMES if n.endswith('_se')}
    for name, row in known.items():
        assert row['params'] == COUNTS[name.split('.')[0]].params
    first, *_, last = known.values()
    assert first['weights'] == 'hf-hub:timm/res2net50_26w_4s.in1k'
    assert last['weights'] == 'in the package'


def test_the_list_finds_by_a_part_or_a_glob(capsys):
    every = listed(capsys)
    assert listed(capsys, '50d_se') == [name for name in every if '50d_se' in name]
    assert listed(capsys, 'res2net50_vd*') == [n for n in every if n.startswith('res2net50_vd')]
    assert listed(capsys, 'test_*') == ['test_res2net_se.digits']


def test_the_list_by_license_and_order(capsys):
    known = {row.model: row for row in rows()}
    free = listed(capsys, '--license', 'Apache-2.0', '--sort', 'top1')
    assert set(free) == {name for name, row in known.items() if row.license == 'apache-2.0'}
    shares = [known[name].top1 or 0 for name in free]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0  # those without an accuracy are the last
    for key in ('params', 'gmacs'):
        values = [getattr(known[name], key) for name in listed(capsys, '--sort', key)]
        assert values == sorted(values)
    assert listed(capsys, '--sort', 'name') == sorted(known)
    assert main(['list', 'hrnet', '--license', 'mit']) == 1
    told = capsys.readouterr().err
    assert "'hrnet'" in told and "'mit'" in told


@pytest.mark.parametrize('name', slow_except(['res2net50_se', 'res2net152d', HRNETS[0]], COUNTS))
def test_info(name, capsys):
    assert main(['info', name]) == 0
    out = capsys.readouterr().out
    assert f'{COUNTS[name].params / 1e6:.2f} M parameters' in out
    assert '[2, 4, 8, 16, 32]' in out
    assert ('pretrained=True' in out) == bool(get_pretrained_cfg(name).has_weights)
    compile(out[out.index('model = ') :].replace('\n' + ' ' * 18, '\n'), 'info', 'exec')


def test_info_of_a_tag_as_json(capsys):
    assert main(['info', 'res2net50_vd_26w_4s.in1k', '--json']) == 0
    known = json.loads(capsys.readouterr().out)
    assert known['model'] == 'res2net50_vd_26w_4s.in1k'
    assert known['top1'] == 79.75
    assert known['tags'] == ['ssld_in1k', 'in1k']
    assert known['arguments']['semantics'] == 'paddle'
    assert known['feature_channels'] == [64, 256, 512, 1024, 2048]
    assert known['weights'].endswith('/dygraph/Res2Net50_vd_26w_4s_pretrained.pdparams')


@pytest.mark.slow  # builds every model
def test_hub_configs_are_what_is_generated():
    done = python('hub_configs/generate.py', '--check')
    assert (done.returncode, done.stdout) == (0, ''), 'run `python hub_configs/generate.py`'
    folders = sorted(path.parent.name for path in ROOT.glob('hub_configs/*/config.json'))
    assert folders == sorted(WITH_WEIGHTS)


@pytest.mark.parametrize('full', slow_except(['res2net50_vd_26w_4s.in1k'], WITH_WEIGHTS))
def test_a_config_of_a_tag_makes_its_model(full):
    """Read as from the Hub it is the model of the name."""
    folder = ROOT / 'hub_configs' / full
    made, own = (timm.create_model(name, device='meta') for name in (f'local-dir:{folder}', full))
    assert json.dumps(made.model_args) == json.dumps(own.model_args)
    assert [p.shape for p in made.parameters()] == [p.shape for p in own.parameters()]
    for key in ('input_size', 'mean', 'std', 'crop_pct', 'interpolation', 'license', 'tag'):
        assert json.dumps(made.pretrained_cfg[key]) == json.dumps(own.pretrained_cfg[key])
