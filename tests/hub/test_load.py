"""Models by a text. Repositories are in test_cache.py and tests/models/test_loading.py."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.common import Trap, change_config, image, model_folder
from timm_res2net.hub.fetch import load_model


def test_loading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / 'net', num_classes=3)
    assert load_model('net').num_classes == 3
    assert load_model(tmp_path / 'net', num_classes=7).num_classes == 7
    with pytest.raises(ValueError, match=r'no published weights .*res2net50_18w_4s.*--random'):
        load_model('res2net50_18w_4s')
    torch.save({}, 'net.pth')
    with pytest.raises(ValueError, match=r'net.pth is a checkpoint file.*timm-res2net convert'):
        load_model('net.pth')


def test_a_pickle_in_a_folder(tmp_path):
    """It loads, and one with code in it is refused in a sentence."""
    folder = model_folder(tmp_path / 'net')
    safe = load_model(folder).eval()
    (folder / 'model.safetensors').unlink()
    torch.save(safe.state_dict(), folder / 'pytorch_model.bin')
    model = load_model(folder).eval()
    with torch.no_grad():
        assert torch.equal(model(image()), safe(image()))
    assert 'state_dict' not in model.pretrained_cfg
    # an entry that timm does not know: it would leave random weights with other classes
    torch.save({'net': safe.state_dict()}, folder / 'pytorch_model.bin')
    other = load_model(folder, num_classes=3)
    assert torch.equal(other.bn1.weight, safe.bn1.weight)
    torch.save({'fc.weight': Trap(os.mkdir, str(tmp_path / 'made'))}, folder / 'pytorch_model.bin')
    with pytest.raises(ValueError, match=r"'posix\.mkdir'.*Nothing in it was run"):
        load_model(folder)
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize('kwargs', [{'features_only': True}, {'num_classes': 3}, {}])
def test_weights_that_would_fill_a_part(kwargs, tmp_path):
    """timm would leave random weights, and says nothing with features or other classes."""
    folder = model_folder(tmp_path / 'net')
    assert load_model(folder, **kwargs)
    weights = load_file(folder / 'model.safetensors')
    del weights['layer2.0.conv1.weight']
    save_file(weights, folder / 'model.safetensors')
    with pytest.raises(ValueError, match=r'without a value.*layer2\.0\.conv1\.weight'):
        load_model(folder, **kwargs)


def test_a_config_of_a_huge_model_takes_no_memory(tmp_path):
    """Its parameters are counted on the meta device before timm makes it."""
    folder = model_folder(tmp_path / 'net')
    arguments = {'layers': [3, 4, 23, 3], 'base_width': 400, 'scale': 8}
    change_config(folder, architecture='res2net_custom', model_args=arguments)
    with pytest.raises(ValueError, match=r'at most 500,000,000 parameters'):
        load_model(folder)


def test_random_weights_let_every_block_count():
    """A fresh model's blocks are the identity, and an exported file was compared with that."""
    for name in ('test_res2net_se', 'test_resnet'):
        modules = load_model(name, pretrained=False).modules()
        assert all(module.weight.any() for module in modules if hasattr(module, 'running_var'))
