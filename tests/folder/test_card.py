"""Cards: what they say, that their code runs, and how an old one keeps its author's text."""

import re

import pytest
from huggingface_hub import ModelCard

from tests.common import ROOT, dry, network, push_to_folder
from timm_res2net.folder.card import merge_card


@pytest.mark.parametrize('channels', [3, 1, 2])
def test_the_code_on_a_card_runs(channels, tmp_path, monkeypatch):
    from PIL import Image

    text = (ROOT / 'hub_configs' / 'test_res2net_se.digits' / 'README.md').read_text()
    if channels != 3:
        folder = push_to_folder(network(in_chans=channels), tmp_path / 'net')
        text = (folder / 'README.md').read_text().replace('hf-hub:me/net', 'local-dir:net')
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len(blocks) == (3 if channels in (1, 3) else 2)
    monkeypatch.chdir(tmp_path)
    Image.new('L', (8, 8)).save('image.png')
    for block in blocks:
        exec(compile(block, 'card', 'exec'), {})


def test_a_card_within_an_old_one():
    new = dry(network()).card
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
    card = dry(network(num_classes=0)).card
    assert ModelCard(card).data.pipeline_tag == 'image-feature-extraction'
    assert 'Classify:' not in card
