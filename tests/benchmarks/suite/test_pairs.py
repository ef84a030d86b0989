"""The pairs of models."""

import pytest

from benchmarks.suite.modes import EAGER, Mode, Modes
from benchmarks.suite.pairs import Spec, find_pair, load_pairs, pairs_without_modes


def test_the_pairs_asked_for():
    models = {tuple(map(str, find_pair(name))) for name in pairs_without_modes()}
    assert models >= {
        ('resnet50', 'res2net50_26w_4s'),
        ('resnet50', 'res2net50_48w_2s'),
        ('resnet50', 'res2net50_14w_8s'),
        ('resnet101', 'res2net101_26w_4s'),
        ('resnet50d', 'res2net50d'),
        ('resnext50_32x4d', 'res2next50'),
        ('seresnet50', 'res2net50_se'),
        ('resnet50', 'resnet50'),
        ('dla60', 'dla60_res2net'),
        ('resnet50', 'article'),
        ('resnet50(base_width=41)', 'article'),
        ('resnet50(base_width=40)', 'article'),
        ('res2net50_26w_4s', "res2net50_se(attn_layer='')"),
    }


def test_the_pairs_with_modes_of_their_own():
    ours, resnet = 'res2net50_26w_4s', 'resnet50'
    found = {
        name: ' → '.join(map(str, find_pair(name)))
        for name in load_pairs()
        if name not in pairs_without_modes()
    }
    assert (
        found.items()
        >= {
            'deploy': f'{ours} [eager] → {ours} [deploy]',
            'swap': f'{resnet} [eager] → {ours} [deploy]',
            'resnet_deploy': f'{resnet} [eager] → {resnet} [deploy]',
            'swap_deploy': f'{resnet} [deploy] → {ours} [deploy]',
            'deploy_compiled': f'{ours} [compiled] → {ours} [deploy+compiled]',
            'main_frozen': f'{resnet} [frozen] → {ours} [frozen]',
            'deploy_frozen': f'{ours} [frozen] → {ours} [deploy+frozen]',
            'swap_frozen': f'{resnet} [frozen] → {ours} [deploy+frozen]',
            'frozen_deploy': f'{resnet} [frozen] → {ours} [deploy]',
            'main_onnxruntime': f'{resnet} [onnxruntime] → {ours} [onnxruntime]',
            'main_openvino': f'{resnet} [openvino] → {ours} [openvino]',
            'deploy_onnxruntime': f'{ours} [deploy] → {ours} [deploy+onnxruntime]',
            'deploy_openvino': f'{ours} [deploy] → {ours} [deploy+openvino]',
            'export_onnxruntime': f'{ours} [onnxruntime] → {ours} [deploy+onnxruntime]',
            'export_openvino': f'{ours} [openvino] → {ours} [deploy+openvino]',
        }.items()
    )
    for pair in load_pairs().values():
        modes = [spec.mode for spec in pair]
        assert all(modes) or modes == [None, None]


def test_modes_of_a_pair():
    deployed = Mode(True, 'eager')
    assert load_pairs()['main'].modes(deployed) == Modes(deployed, deployed, of_pair=False)
    assert load_pairs()['deploy'].modes(EAGER) == Modes(EAGER, deployed, of_pair=True)


def test_a_pair_by_two_names():
    pair = find_pair('dla60:dla60_res2net')
    assert pair == (Spec('dla60'), Spec('dla60_res2net'))
    assert pair.labels() == {'baseline': 'dla60', 'subject': 'dla60_res2net'}


def test_unknown_pairs_and_models():
    with pytest.raises(ValueError, match="Unknown pair 'man'") as error:
        find_pair('man')
    assert ', '.join(load_pairs()) in str(error.value)
    assert 'BASELINE:SUBJECT' in str(error.value)
    with pytest.raises(ValueError, match="Unknown model 'res2net50_sx'") as error:
        find_pair('resnet50:res2net50_sx')
    assert 'Did you mean res2net50_se, ' in str(error.value)
    assert 'timm.list_models()' in str(error.value)


def test_a_model_as_text():
    assert str(Spec('resnet50')) == 'resnet50'
    assert str(Spec('resnet50', {'base_width': 41})) == 'resnet50(base_width=41)'
    assert str(Spec('resnet50', {}, Mode.parse('deploy'))) == 'resnet50 [deploy]'
    spec = Spec('resnet50', {'base_width': 41}, Mode.parse('deploy+frozen'))
    assert str(spec) == 'resnet50(base_width=41) [deploy+frozen]'


@pytest.mark.parametrize('text', ['{"a": {"baseline": "resnet50"}}', '{"a": {},}'])
def test_a_typo_in_the_data_is_one_sentence(text, monkeypatch):
    monkeypatch.setattr('pathlib.Path.read_text', lambda path: text)
    with pytest.raises(ValueError, match=r'pairs.json cannot be read .*Write a pair as'):
        load_pairs.__wrapped__()  # not what an earlier test has read
