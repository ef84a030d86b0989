"""The registered models as the command line shows them, and hub_configs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard
from timm.models import get_arch_pretrained_cfgs

from timm_res2net.cli import main
from timm_res2net.cli.models import rows
from timm_res2net.convert import COUNTS, PUBLISHERS, file_of
from timm_res2net.models.res2net_zoo import default_cfgs

ROOT = Path(__file__).parents[2]

WITH_WEIGHTS = [
    full
    for name in default_cfgs
    for full, cfg in get_arch_pretrained_cfgs(name).items()
    if cfg.has_weights
]


def run_generate(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, 'hub_configs/generate.py', *words],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow  # builds every model
def test_hub_configs_are_what_is_generated():
    done = run_generate('--check')
    assert (done.returncode, done.stdout) == (0, ''), 'run `python hub_configs/generate.py`'
    folders = sorted(path.parent.name for path in ROOT.glob('hub_configs/*/config.json'))
    assert folders == sorted(WITH_WEIGHTS)


def test_help_of_generate():
    done = run_generate('--help')
    assert done.returncode == 0
    assert done.stdout.startswith('usage: python hub_configs/generate.py [-h] [--check]')


def listed(capsys, *words: str) -> list[str]:
    """The names that `list` prints."""
    assert main(['list', *words]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == [
        '|',
        'model',
        '|',
        'M',
        '|',
        'GMACs',
        '|',
        'top-1',
        '|',
        'license',
        '|',
    ]
    return [line.split()[1] for line in lines]


def test_the_list_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    assert main(['list']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(rows())  # none is folded
    assert max(map(len, lines)) <= 80


def test_the_list_finds_by_a_part_or_a_glob(capsys):
    every = listed(capsys)
    assert listed(capsys, '50d_se') == [name for name in every if '50d_se' in name]
    assert listed(capsys, 'ssld') == [name for name in every if name.endswith('.ssld_in1k')]
    assert listed(capsys, 'res2net50_vd*') == [n for n in every if n.startswith('res2net50_vd')]
    assert listed(capsys, 'test_*') == ['test_res2net_se.digits']


def test_the_list_by_license_and_order(capsys):
    known = {row.model: row for row in rows()}
    free = listed(capsys, '--license', 'apache-2.0', '--sort', 'top1')
    assert set(free) == {name for name, row in known.items() if row.license == 'apache-2.0'}
    assert free[0] == 'res2net200_vd_26w_4s.ssld_in1k'
    shares = [known[name].top1 or 0 for name in free]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0  # those without an accuracy are the last
    for key in ('params', 'gmacs'):
        values = [getattr(known[name], key) for name in listed(capsys, '--sort', key)]
        assert values == sorted(values)
    assert listed(capsys, '--sort', 'name') == sorted(known)
    assert main(['list', 'vd', '--license', 'apache-2.0', '--sort', 'params', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]['model'].startswith('res2net50_vd_26w_4s')
    assert {row['license'] for row in found} == {'apache-2.0'}


@pytest.mark.parametrize(
    ('words', 'value', 'remedy'),
    [
        (['nothing'], "'nothing'", '`timm-res2net list` shows all models'),
        (['--license', 'mit'], "'mit'", 'shows all models'),
        (['hrnet', '--license', 'unknown'], "'hrnet' with license 'unknown'", 'shows all models'),
    ],
)
def test_the_list_has_none(words, value, remedy, capsys):
    assert main(['list', *words]) == 1
    told = capsys.readouterr().err
    assert value in told
    assert remedy in told


def test_the_chooser_of_the_readme():
    """At most six rows, each what it says, with the figures of the package."""
    known = {row.model: row for row in rows()}
    section = (ROOT / 'README.md').read_text().split('## Models')[1].split('\n## ')[0]
    cells = [
        [cell.strip().strip('`') for cell in line.strip('|').split('|')]
        for line in section.splitlines()
        if '| `' in line
    ]
    chosen = {}
    for purpose, name, params, top1, license in cells:
        row = chosen[purpose] = known[name]
        assert params == f'{row.params / 1e6:.1f} M'
        assert top1 == ('' if row.top1 is None else f'{row.top1:.2f} %')
        assert license == (row.license or '')
    measured = [row for row in rows() if row.top1]
    assert list(chosen) == [
        'commercial use', 'best accuracy', 'smallest with ImageNet weights', 'detection',
        'keypoints', 'works offline',
    ]  # fmt: skip
    assert chosen['commercial use'].license == chosen['detection'].license == 'apache-2.0'
    assert chosen['best accuracy'] == max(measured, key=lambda row: row.top1)
    assert chosen['smallest with ImageNet weights'] == min(measured, key=lambda row: row.params)
    assert chosen['keypoints'].model.startswith('hrnet_')
    assert chosen['works offline'].weights == 'in the package'


@pytest.mark.parametrize('full', WITH_WEIGHTS)
def test_a_config_of_a_tag_makes_its_model(full):
    """The config, read as from the Hub, makes the model of the name, and says where it differs."""
    folder = ROOT / 'hub_configs' / full
    config = json.loads((folder / 'config.json').read_text())
    name, _, tag = full.partition('.')
    made: Any = timm.create_model(f'local-dir:{folder}', device='meta')
    own: Any = timm.create_model(full, device='meta')
    recorded = [json.loads(json.dumps(model.model_args)) for model in (made, own)]
    assert recorded[0] == recorded[1]
    assert [p.shape for p in made.parameters()] == [p.shape for p in own.parameters()]
    assert (config['architecture'], config['pretrained_cfg']['tag']) == (name, tag)
    for key in ('input_size', 'mean', 'std', 'crop_pct', 'interpolation', 'license'):
        value = own.pretrained_cfg[key]
        stored = made.pretrained_cfg[key]
        assert (list(stored) if isinstance(value, tuple) else stored) == (
            list(value) if isinstance(value, tuple) else value
        )
    card = ModelCard((folder / 'README.md').read_text())
    cfg = get_arch_pretrained_cfgs(name)[full]
    data = card.data.to_dict()
    assert data['license'] == cfg.license
    assert data['library_name'] == 'timm'
    assert data.get('base_model') == cfg.hf_hub_id
    figures = COUNTS[name]
    assert f'{figures.params / 1e6:.2f} M' in card.text
    assert f'{figures.gmacs:.2f} G' in card.text
    file = file_of(full)
    if file:
        assert card.data.eval_results[0].metric_value == file.top1
        assert card.data.eval_results[0].source_name == PUBLISHERS[file.by].figures
        assert f'{file.top1:g}' in card.text
    if cfg.license == 'unknown':
        assert 'licenses the code under CC BY-NC-SA 4.0 and names no license' in card.text
    assert f"timm.create_model('{full}', pretrained=True" in card.text
