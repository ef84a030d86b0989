"""Tables, lists and error texts."""

import torch

from timm_res2net.layers.text import (
    brief,
    first_line,
    list_some,
    printable,
    sentence,
    table,
)


def test_a_table_lines_up():
    assert table(('a', 'long'), [('1', 'x'), ('22', '')]).splitlines() == [
        '| a  | long |',
        '| -- | ---- |',
        '| 1  | x    |',
        '| 22 |      |',
    ]


def test_a_table_folds():
    """The widest column gives way; every character stays."""
    rows = [('one', 'some words to fold'), ('x' * 9, ''), ('', '')]
    assert table(('a', 'long'), rows, 20).splitlines() == [
        '| a      | long    |',
        '| ------ | ------- |',
        '| one    | some    |',
        '|        | words   |',
        '|        | to fold |',
        '| xxxxxx |         |',
        '| xxx    |         |',
        '|        |         |',
    ]
    assert table(('a', 'long'), rows, 34) == table(('a', 'long'), rows)
    assert table(('ab',), [('cd',)], 1).splitlines()[0] == '| a |'  # never without an end


def test_lists():
    assert list_some({'b', 'a'}) == '2: a, b'
    assert list_some([f'k{i:02}' for i in range(12)], limit=2) == '12: k00, k01, ...'


def test_sentences():
    assert first_line(ValueError('\n  one.\ntwo')) == 'one'
    assert first_line(KeyError()) == 'KeyError'
    assert sentence('one') == sentence('one.') == 'one.'


def test_brief():
    """Of a text 60 characters, of a list ten values, of any value 200 characters in one line."""
    assert brief('a\n') == r"'a\n'"
    assert len(brief('x' * 99)) == 60
    assert brief(torch.arange(2).view(2, 1)) == 'tensor([[0], [1]])'
    for length, count in ((1, 10), (1, 11), (16, 10), (17, 10)):
        values = ['x' * length] * count
        more = ', ...]' if count > 10 else ']'
        text = str(values[:10])[:-1] + more
        assert brief(values) == (text if len(text) <= 200 else f'{text[:200]}...')


def test_names_and_values_are_printed_in_one_line():
    assert printable('a\n\t\x1b[2J\u202e\udcff é × …') == r'a\n\t\x1b[2J\u202e\udcff é × …'
    assert list_some(['b\n', 'a']) == r'2: a, b\n'
    assert table(['x'], [['a\nb']]).splitlines()[-1] == r'| a\nb |'
