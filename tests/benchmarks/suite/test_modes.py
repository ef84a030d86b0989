"""Modes and their text."""

import pytest

from benchmarks.suite.cells import AXES
from benchmarks.suite.modes import EAGER, MODES, Mode, Modes


@pytest.mark.parametrize('text', MODES)
def test_modes(text):
    mode = Mode.parse(text)
    assert mode.deploys == text.startswith('deploy')
    assert mode.runtime == (text.removeprefix('deploy').removeprefix('+') or 'eager')
    assert str(mode) == text


def test_all_modes():
    others = ('compiled', 'frozen', 'cudagraphs', 'onnxruntime', 'openvino')
    expected = ('eager', *others, 'deploy', *(f'deploy+{name}' for name in others))
    assert expected == MODES
    assert AXES['mode'][0] == MODES
    for text in ('deploy+', 'deploy+eager', 'frozen+deploy', ''):
        with pytest.raises(ValueError, match='Unknown mode') as error:
            Mode.parse(text)
        assert f"'{text}'" in str(error.value)
        assert ', '.join(MODES) in str(error.value)


def test_modes_of_a_cell():
    one, own = Modes.parse('deploy+frozen'), Modes.parse('eager->deploy+frozen')
    deployed = Mode(True, 'frozen')
    assert one == Modes(deployed, deployed, of_pair=False)
    assert own == Modes(EAGER, deployed, of_pair=True)
    assert (str(one), str(own)) == ('deploy+frozen', 'eager->deploy+frozen')
    assert (one.different, own.different) == ((deployed,), (EAGER, deployed))
    same = Modes.parse('frozen->frozen')  # the pair has its own modes, and they are equal
    assert same.of_pair and str(same) == 'frozen->frozen'
    assert one.compiles and own.compiles
    assert not Modes.parse('eager->deploy').compiles
    with pytest.raises(ValueError, match="Unknown mode 'fast'"):
        Modes.parse('eager->fast')
