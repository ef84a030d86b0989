"""The registered models as the command line shows and writes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard
from timm.models import get_arch_pretrained_cfgs

from timm_res2net.cli import main
from timm_res2net.models.figures import FIGURES
from timm_res2net.models.res2net_zoo import default_cfgs

ROOT = Path(__file__).parents[2]

WITH_WEIGHTS = [
    full
    for name in default_cfgs
    for full, cfg in get_arch_pretrained_cfgs(name).items()
    if cfg.has_weights
]


def test_hub_configs_are_what_the_command_writes(tmp_path, capsys):
    assert main(['hub-configs', '--out', str(tmp_path / 'new')]) == 0
    assert capsys.readouterr().out.count('\n') == len(WITH_WEIGHTS)
    kept = sorted(p.name for p in (ROOT / 'hub_configs').iterdir())
    assert kept == sorted([*WITH_WEIGHTS, 'README.md'])
    table = (tmp_path / 'new' / 'README.md').read_text(encoding='utf-8')
    assert table == (ROOT / 'hub_configs' / 'README.md').read_text(encoding='utf-8')
    main(['list'])
    assert capsys.readouterr().out.strip() in table
    for name in WITH_WEIGHTS:
        for file in ('config.json', 'README.md'):
            made = (tmp_path / 'new' / name / file).read_text(encoding='utf-8')
            kept = (ROOT / 'hub_configs' / name / file).read_text(encoding='utf-8')
            assert kept == made, f'{name}/{file}: run `timm-res2net hub-configs --out hub_configs`'


@pytest.mark.parametrize('full', WITH_WEIGHTS)
def test_a_config_of_a_tag_makes_its_model(full):
    """The config, read as from the Hub, makes the model of the name, and says where it differs."""
    folder = ROOT / 'hub_configs' / full
    config = json.loads((folder / 'config.json').read_text())
    name, _, tag = full.partition('.')
    made: Any = timm.create_model(f'local-dir:{folder}', device='meta')
    own: Any = timm.create_model(full, device='meta')
    assert made.model_args == json.loads(json.dumps(own.model_args))
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
    figures = FIGURES[name]
    assert f'{figures.params / 1e6:.2f} M' in card.text
    assert f'{figures.gmacs:.2f} G' in card.text
    if tag in figures.top1:
        value, source = figures.top1[tag]
        assert card.data.eval_results[0].metric_value == value
        assert card.data.eval_results[0].source_name == source
        assert f'{value:g}' in card.text
    if cfg.license == 'unknown':
        assert 'CC BY-NC-SA 4.0 since 2021' in card.text
    assert f"timm.create_model('{full}', pretrained=True" in card.text
