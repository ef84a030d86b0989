"""Models by a text. Repositories are in test_cache.py and tests/models/test_loading.py."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from tests.common import image, model_folder
from tests.hub.test_cache import Evil
from timm_res2net.folder.folder import ModelFolder
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
    safe = ModelFolder(folder).load().eval()
    (folder / 'model.safetensors').unlink()
    torch.save(safe.state_dict(), folder / 'pytorch_model.bin')
    model = load_model(folder).eval()
    with torch.no_grad():
        assert torch.equal(model(image()), safe(image()))
    assert 'state_dict' not in model.pretrained_cfg
    torch.save({'fc.weight': Evil(str(tmp_path / 'made'))}, folder / 'pytorch_model.bin')
    with pytest.raises(ValueError, match=r"it wants to load 'posix\.mkdir'.*Nothing in it was run"):
        load_model(folder)
    assert not (tmp_path / 'made').exists()


def test_config_and_weights_of_different_models(tmp_path):
    """timm's error has a line for each of hundreds of tensors."""
    folder = model_folder(tmp_path / 'net')
    wide = timm.create_model('test_res2net_se', channels=(32, 32, 40, 48)).state_dict()
    save_file(wide, folder / 'model.safetensors')
    with pytest.raises(ValueError, match=r'are of different models \(size mismatch') as error:
        load_model(folder)
    assert str(folder) in str(error.value) and len(str(error.value)) < 600
    assert '\n' not in str(error.value)


def test_random_weights_let_every_block_count():
    """A fresh model's blocks are the identity, and an exported file was compared with that."""
    for name in ('test_res2net_se', 'res2net50_26w_4s', 'resnet18'):
        norms = [
            m for m in load_model(name, pretrained=False).modules() if hasattr(m, 'running_var')
        ]
        assert all(norm.weight.any() for norm in norms)


def test_a_config_of_a_huge_model_takes_no_memory(tmp_path):
    """Its parameters are counted on the meta device before timm makes it."""
    folder = model_folder(tmp_path / 'net')
    config = json.loads((folder / 'config.json').read_text())
    arguments = {'layers': [3, 4, 23, 3], 'base_width': 400, 'scale': 8}
    config |= {'architecture': 'res2net_custom', 'model_args': arguments}
    (folder / 'config.json').write_text(json.dumps(config))
    for pretrained in (True, False):
        with pytest.raises(ValueError, match=r'at most 500,000,000 parameters'):
            load_model(folder, pretrained)


@pytest.mark.parametrize('kwargs', [{'features_only': True}, {'num_classes': 3}, {}])
@pytest.mark.parametrize('name', ['test_res2net_se', 'res2net50_48w_2s'])
def test_weights_that_would_fill_a_part(name, kwargs, tmp_path):
    """timm would leave random weights, and says nothing with features or other classes."""
    small = {} if name.startswith('test') else {'layers': (1, 1, 1, 1)}
    folder = tmp_path / 'net'
    model = timm.create_model(name, **small)
    save_for_hf(model, folder, model_args=small, safe_serialization=True)
    assert load_model(folder, **kwargs)
    weights = model.state_dict()
    del weights['layer2.0.conv1.weight']
    save_file(weights, folder / 'model.safetensors')
    with pytest.raises(RuntimeError, match=r'lacks weights.*layer2\.0\.conv1\.weight'):
        load_model(folder, **kwargs)
