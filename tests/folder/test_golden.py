"""Converted models beside outputs of the original code."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.common import image, network, relative_error
from timm_res2net import convert_checkpoint
from timm_res2net.cli import main
from timm_res2net.folder.golden import (
    GOLDEN,
    compare_golden,
    differences,
    golden_tensors,
)


@pytest.fixture
def files(tmp_path):
    """A checkpoint, a batch and the network."""
    model = network(semantics='mmdet', num_classes=5)
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
    with_graph = [level.clone().requires_grad_() for level in levels[1:]]  # as without no_grad
    torch.save(with_graph, folder / 'four.pt')
    for name, names in (
        ('logits.npy', ['logits']),
        ('levels.safetensors', [f'level {i}' for i in range(5)]),
        ('four.pt', [f'level {i}' for i in range(1, 5)]),
    ):
        found = convert_checkpoint(
            folder / 'w.pth', semantics='mmdet', compare=(folder / 'images.pt', folder / name)
        )
        assert list(found.notes.differences) == names
        assert max(found.notes.differences.values()) < 1e-5
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
        (torch.zeros(2, 7), r'shapes \[\(2, 7\)\], and the model returns \[\(2, 5\)\]'),
        (torch.full((2, 5), torch.nan), 'by inf'),
        (torch.tensor([[0.0] * 5, [0.0] * 4 + [torch.nan]]), 'by inf'),
    ],
)
def test_files_that_do_not_compare(content, words, files):
    folder, _ = files
    torch.save(content, folder / 'o.pt')
    with pytest.raises(ValueError, match=words):
        convert_checkpoint(folder / 'w.pth', compare=(folder / 'images.pt', folder / 'o.pt'))


# --- golden tensors -------------------------------------------------------------------------------

NETWORKS = {
    'a classifier': {},
    'one channel, another image': {'in_chans': 1},
    'without a head': {'num_classes': 0},
    'without a head and pooling': {'num_classes': 0, 'global_pool': ''},
}


@pytest.mark.parametrize('case', NETWORKS)
def test_golden_tensors_are_what_timm_gives(case, tmp_path):
    """The names and meanings are those of timm's own repositories."""
    model = network(**NETWORKS[case])
    found = golden_tensors(model, [getattr(model, 'in_chans', 3), 64, 32])
    x = found['input']
    with torch.no_grad():
        features = model.forward_features(x)
        expected = {
            'output': model(x),
            'features': features,
            'pre_logits': model.forward_head(features, pre_logits=True),
        }
    assert found.keys() == {'input', *expected}
    assert x.shape == (1, getattr(model, 'in_chans', 3), 64, 32)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert relative_error(found[name], tensor) < 1e-5  # float32
    save_file(found, tmp_path / 'golden')
    assert max(compare_golden(model, tmp_path / 'golden').values()) < 1e-5


def test_golden_tensors_have_a_size():
    """A large image is made smaller; large tensors are left out; without an input there is none."""
    model = network()
    assert golden_tensors(model, [3, 640, 64])['input'].shape == (1, 3, 384, 64)
    wide = timm.create_model('test_res2net_se', in_chans=32).eval()
    assert golden_tensors(wide, [32, 224, 224]) == {}


def golden_files():
    """Content for the file, and what its error names."""
    good = golden_tensors(timm.create_model('test_res2net_se', num_classes=5).eval(), [3, 64, 64])
    x = good['input']
    return {
        'no input': ({'output': good['output']}, 'does not hold an input'),
        'other channels': ({**good, 'input': x[:, :1]}, r'shape \(1, 1, 64, 64\).*does not run'),
        'other classes': ({**good, 'output': torch.ones(1, 9)}, r'\(1, 9\).*\(1, 5\)'),
        **{
            f'NaN in {name}': ({**good, name: good[name] * torch.nan}, rf'inf \({name}\)')
            for name in ('output', 'features', 'pre_logits')
        },
        'another output': (
            {**good, 'output': torch.ones(1, 5)},
            r'\(output\).*rounding.*semantics',
        ),
        'no safetensors': (None, 'damaged'),
    }


@pytest.mark.parametrize('case', golden_files())
def test_a_golden_file_that_is_wrong(case, tmp_path):
    content, words = golden_files()[case]
    if content is None:
        (tmp_path / 'golden').write_bytes(b'no safetensors')
    else:
        save_file(
            {key: tensor.contiguous() for key, tensor in content.items()}, tmp_path / 'golden'
        )
    model = timm.create_model('test_res2net_se', num_classes=5).eval()
    with pytest.raises(ValueError, match=words) as error:
        compare_golden(model, tmp_path / 'golden')
    assert GOLDEN in str(error.value)


@pytest.mark.parametrize('place', range(3))
@pytest.mark.parametrize('whose', ['got', 'expected'])
def test_nan_is_a_difference_wherever_it_is(place, whose):
    outputs = {name: torch.ones(2, 3) for name in ('first', 'second', 'third')}
    changed = dict(outputs)
    name = [*outputs][place]
    changed[name] = torch.tensor([[1.0, 1, 1], [1, 1, torch.nan]])
    pair = (changed, outputs) if whose == 'got' else (outputs, changed)
    assert differences(*pair) == {key: torch.inf if key == name else 0 for key in outputs}
    assert max(differences(*pair).values()) == torch.inf
