"""The memory of a conversion."""

import pytest
import timm
import torch

from benchmarks import convert_memory
from benchmarks.script import load


@pytest.mark.slow
def test_memory_of_a_conversion_is_measured(tmp_path):
    small = tmp_path / 'small.pth'
    torch.save(timm.create_model('test_res2net_se').state_dict(), small)
    large = tmp_path / 'large.pth'
    torch.save(timm.create_model('res2net50_18w_4s').state_dict(), large)
    (tmp_path / 'made').mkdir()
    peak = convert_memory.measure(large, small, tmp_path / 'made')
    # at least a part of the file must have been in memory
    assert peak > 0.2 * large.stat().st_size
    assert sorted(p.name for p in (tmp_path / 'made').iterdir()) == ['o', 's']


def test_converting_needs_little_memory():
    report = load('convert_memory')
    assert report.keys() == convert_memory.FILES.keys()
    for cell in report.values():
        assert 280e6 < cell['file_bytes'] < 460e6
        assert cell['peak_bytes'] < 2.5 * cell['file_bytes']  # the goal
