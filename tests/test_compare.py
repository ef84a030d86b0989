"""Converted models beside outputs of the original code."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.common import image, randomise
from timm_res2net import convert_checkpoint
from timm_res2net.cli import main


@pytest.fixture
def files(tmp_path):
    """A checkpoint, a batch and the network."""
    model = randomise(timm.create_model('test_res2net_se', semantics='mmdet', num_classes=5)).eval()
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    torch.save(image(), tmp_path / 'images.pt')
    return tmp_path, model


def test_logits_and_levels(files, capsys):
    folder, model = files
    with torch.no_grad():
        logits = model(image())
        levels = model.forward_intermediates(image(), intermediates_only=True)
    np.save(folder / 'logits.npy', logits.numpy())
    save_file({f'level{i}': t for i, t in enumerate(levels)}, folder / 'levels.safetensors')
    torch.save(levels[1:], folder / 'four.pt')
    for name, names in (
        ('logits.npy', ['logits']),
        ('levels.safetensors', [f'level {i}' for i in range(5)]),
        ('four.pt', [f'level {i}' for i in range(1, 5)]),
    ):
        found = convert_checkpoint(
            folder / 'w.pth', semantics='mmdet', compare=(folder / 'images.pt', folder / name)
        )
        assert list(found.differences) == names
        assert max(found.differences.values()) < 1e-5
    command = ['convert', str(folder / 'w.pth'), '--semantics', 'mmdet', '--dry-run', '--compare']
    assert main([*command, str(folder / 'images.pt'), str(folder / 'logits.npy')]) == 0
    assert '(logits)' in capsys.readouterr().out


def test_another_network_writes_nothing(files):
    folder, model = files
    with torch.no_grad():
        torch.save(model(image()), folder / 'logits.pt')
    given = folder / 'images.pt', folder / 'logits.pt'
    with pytest.raises(ValueError, match=r'logits\.pt by .*\(logits\).*same keys.*Give its sem'):
        convert_checkpoint(folder / 'w.pth', folder / 'out', compare=given)
    assert not (folder / 'out').exists()


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'a': 1}, 'not tensors. Save a tensor'),
        (torch.zeros(2, 7), r'shapes \[\(2, 7\)\], and the model gives \[\(2, 5\)\]'),
        (torch.full((2, 5), torch.nan), 'nan'),
    ],
)
def test_files_that_do_not_compare(content, words, files):
    folder, _ = files
    torch.save(content, folder / 'o.pt')
    with pytest.raises(ValueError, match=words):
        convert_checkpoint(folder / 'w.pth', compare=(folder / 'images.pt', folder / 'o.pt'))
