"""Models by a text. Repositories are in tests/hub/test_cache.py and tests/test_download.py."""

import pytest
import torch

from tests.common import image, model_folder
from tests.hub.test_cache import Evil
from timm_res2net.folder.folder import ModelFolder
from timm_res2net.hub.load import load_model


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


def test_random_weights_let_every_block_count():
    """A fresh model's blocks are the identity, and an exported file was compared with that."""
    for name in ('test_res2net_se', 'res2net50_26w_4s', 'resnet18'):
        norms = [
            m for m in load_model(name, pretrained=False).modules() if hasattr(m, 'running_var')
        ]
        assert all(norm.weight.any() for norm in norms)
