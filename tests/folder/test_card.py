"""Cards: what they say, that their code runs, and how an old one keeps its author's text."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard

from tests.common import push_to_folder, randomise
from timm_res2net import push_to_hub
from timm_res2net.folder.card import merge_card

ROOT = Path(__file__).parents[2]


def tiny(**kwargs: Any) -> Any:
    """A small model with random weights and statistics."""
    return randomise(timm.create_model('test_res2net_se', **{'num_classes': 5, **kwargs})).eval()


def dry(model: Any, **kwargs: Any) -> Any:
    """What would be pushed."""
    return push_to_hub(model, 'me/net', **{'license': 'mit', 'dry_run': True, **kwargs})


@pytest.mark.parametrize('channels', [3, 1, 2])
def test_the_code_on_a_card_runs(channels, tmp_path, monkeypatch):
    from PIL import Image

    text = (ROOT / 'hub_configs' / 'test_res2net_se.digits' / 'README.md').read_text()
    if channels != 3:
        folder = push_to_folder(tiny(in_chans=channels), tmp_path / 'net')
        text = (folder / 'README.md').read_text().replace('hf-hub:me/net', 'local-dir:net')
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len(blocks) == (3 if channels in (1, 3) else 2)
    monkeypatch.chdir(tmp_path)
    Image.new('L', (8, 8)).save('image.png')
    for block in blocks:
        exec(compile(block, 'card', 'exec'), {})


def test_a_card_within_an_old_one():
    new = dry(tiny()).card
    assert merge_card(new, new) == merge_card(merge_card(new, new), new)
    old = '---\ntags:\n- birds\nlicense: cc-by-4.0\nco2_eq_emissions: 5\n---\nMy own words only.\n'
    merged = merge_card(new, old)
    data = ModelCard(merged).data.to_dict()
    assert data['tags'] == ['birds', 'image-classification', 'timm', 'res2net', 'transformers']
    assert data['license'] == 'mit'
    assert data['co2_eq_emissions'] == 5
    assert merged.endswith('---\nMy own words only.\n')
    with pytest.raises(ValueError, match=r'metadata of README.md cannot be read \(.*Correct the'):
        merge_card(new, '---\ntags: [\n---\n')


def test_a_network_without_a_head():
    card = dry(tiny(num_classes=0)).card
    assert ModelCard(card).data.pipeline_tag == 'image-feature-extraction'
    assert 'Classify:' not in card
