"""What JSON can hold in a config: no exception but ValueError, and what is accepted builds.

The rows below it are values that a user or timm wrote.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.common import TINY, model_folder, states
from timm_res2net import check
from timm_res2net.folder.card import merge_card, read_card
from timm_res2net.folder.config import Config

WORD = st.text(st.characters(codec='ascii', exclude_categories=['Cc']), max_size=9)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(WORD, values),
    max_leaves=6,
)
NEAR = st.sampled_from(
    [0, 1, 3, 4, -1, 32, 0.5, 10**9, '', 'se', 'avg', 'paddle', 'silu', 'conv1', True, None, [],
     [1, 1, 1, 1], [3, 64, 64], [0, 0, 0], [0.5], {}, {'scale': 4}, ['a']]
)  # fmt: skip
TOP = ('architecture', 'num_classes', 'pretrained_cfg', 'model_args', 'label_names', 'auto_map')
ARGUMENTS = (
    'layers', 'channels', 'scale', 'base_width', 'cardinality', 'semantics', 'attn_layer',
    'act_layer', 'norm_layer', 'aa_layer', 'global_pool', 'output_stride', 'stem_type',
    'stem_width', 'in_chans', 'avg_down', 'drop_rate', 'out_indices', 'features_only', 'block_args',
)  # fmt: skip
CFG = (
    'input_size', 'interpolation', 'crop_pct', 'mean', 'std', 'first_conv', 'classifier', 'license',
    'label_offset', 'label_names', 'tag', 'num_classes', 'pool_size', 'crop_mode', 'colour',
)  # fmt: skip
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(
            [(key,) for key in TOP]
            + [('model_args', key) for key in ARGUMENTS]
            + [('pretrained_cfg', key) for key in CFG]
        ),
        NEAR | ANY,
    ),
    min_size=1,
    max_size=3,
)
GENERATED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp('json') / 'net')


@pytest.fixture(scope='module')
def text(folder) -> str:
    return (folder / 'config.json').read_text()


def changed(text: str, changes: Any) -> str:
    config = json.loads(text)
    for path, value in changes:
        parent = config if len(path) == 1 else config.get(path[0])
        if isinstance(parent, dict):
            parent[path[-1]] = value
    return json.dumps(config)


@GENERATED
@given(changes=CHANGES)
def test_a_config_is_refused_or_builds(changes, folder, text):
    (folder / 'config.json').write_text(changed(text, changes))
    told = states(check(folder))
    try:
        config = Config.read(folder / 'config.json')
    except ValueError:
        assert told['config'] == 'error'
        return
    assert told['config'] == 'ok'
    if told.get('weights') == 'ok':  # it is the network of the weights
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
        assert model.num_classes == config.num_classes


@GENERATED
@given(text=WORD, metadata=st.dictionaries(WORD, ANY, max_size=3))
def test_a_card_is_refused_or_kept(text, metadata, folder):
    old = f'---\n{json.dumps(metadata)}\n---\n{text}'
    new = (folder / 'README.md').read_text()
    try:
        merged = merge_card(new, old)
    except ValueError:
        return
    assert read_card(merged).data.license == 'mit'
    assert merge_card(new, merged) == merged


ROWS = {  # a field, a value, and what the error names
    'no object': ((), [], 'list'),
    'an architecture of another package': (('architecture',), 'vgg11', "'vgg11'"),
    'a number as the architecture': (('architecture',), 5, 'got 5'),
    'classes in words': (('num_classes',), 'ten', "got 'ten'"),
    'classes that are true': (('num_classes',), True, 'got True'),
    'a list of arguments': (('model_args',), [1], 'got [1]'),
    'too few label names': (('label_names',), ['a'], '10 texts'),
    'a number as the label names': (('label_names',), 0, '10 texts, got 0'),
    'no splits': (('model_args', 'scale'), 0, 'scale must be'),
    'an unknown argument': (('model_args', 'scales'), 4, "'scales'"),
    'a mean in words': (('pretrained_cfg', 'mean'), 'grey', "'grey'"),
    'a std of 0': (('pretrained_cfg', 'std'), [0, 0, 0], '[0, 0, 0]'),
    'a label offset': (('pretrained_cfg', 'label_offset'), 1, 'label_offset must be 0'),
    'a layer': (('pretrained_cfg', 'first_conv'), 0, 'first_conv must name layers'),
    'a huge image': (('pretrained_cfg', 'input_size'), [3, 10**5, 10**5], '100000'),
    'an interpolation': (('pretrained_cfg', 'interpolation'), 'cubicle', "'cubicle'"),
    'an unknown field': (('pretrained_cfg', 'colour'), 1, "'colour'"),
}


@pytest.mark.parametrize('case', ROWS)
def test_a_wrong_config(case, folder, text):
    path, value, words = ROWS[case]
    content = changed(text, [(path, value)]) if path else json.dumps(value)
    (folder / 'config.json').write_text(content)
    told = {finding.what: finding for finding in check(folder)}
    finding = told['config' if told['config'].state == 'error' else 'weights']
    assert finding.state == 'error'
    assert words in finding.text
    assert TINY in text
