"""The forms of a model, made and timed side by side; ratios of samples with a known truth."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.suite.cells import compiler
from tests.common import TINY, image, network, noisy, relative_error
from timm_res2net.export import FORMATS, measure
from timm_res2net.export.measure import (
    FORMS,
    SLOW,
    Ratio,
    compare_forms,
    interval,
    make_form,
    make_forms,
    ratio,
    time_forms,
)

needs_compiler = pytest.mark.skipif(compiler() is None, reason='needs a C++ compiler')
EXACT = ('eager', 'control', 'deployed', 'ONNX Runtime', 'OpenVINO, float32')
TRUE = 1.21


# --- ratios ---------------------------------------------------------------------------------------


def test_the_interval_covers_the_truth_19_times_in_20():
    rng, runs, held = np.random.default_rng(1), 400, 0
    for _ in range(runs):
        found = ratio(TRUE * noisy(rng, 30), noisy(rng, 30))
        held += found.low <= TRUE <= found.high
        assert found.low <= found.median <= found.high
    # the standard error of a share of 0.95 over 400 runs is 0.011
    assert 0.93 <= held / runs <= 0.98


def test_the_interval_is_the_same_for_the_same_samples():
    values = list(noisy(np.random.default_rng(4), 50))
    assert interval(values) == interval(values)
    assert interval([2.0] * 5) == (2.0, 2.0)
    low, high = interval([1.0, 1.1, 1.2, 1.3, 1.4])
    assert 1.0 <= low <= 1.2 <= high <= 1.4
    with pytest.raises(ValueError, match='zip'):
        ratio([1.0, 1.0], [1.0])
    assert Ratio(2, 1.9, 2.2).half_width == pytest.approx(0.1)


# --- forms ----------------------------------------------------------------------------------------


def installed(name: str) -> bool:
    packages = FORMATS[FORMS[name]].packages if FORMS[name] else ()
    needed = (*packages, 'nncf') if 'int8' in name else packages
    return all(importlib.util.find_spec(package) for package in needed)


def output(step, x: torch.Tensor) -> torch.Tensor:
    found = step(x)
    return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.slow
def test_every_form_runs_the_model(tmp_path):
    model = network(layers=(2, 1, 1, 1)).requires_grad_(False)
    x = image(2)
    other = image(1, 80)
    steps, sizes, left_out = make_forms(model, [x, other], tmp_path, False, FORMS)
    assert set(steps) == {'control'} | {
        name for name in FORMS if installed(name) and name not in SLOW
    }
    assert set(left_out) == FORMS.keys() - steps.keys()
    assert all(left_out[name] == 'takes minutes to make' for name in SLOW)
    assert set(sizes) == {name for name in steps if 'ONNX' in name or 'OpenVINO' in name}
    with torch.inference_mode():
        for images, (name, step) in itertools.product((x, other), steps.items()):
            # int8 is calibrated by noise here, and bfloat16 has three digits
            limit = 1e-4 if name in EXACT else 0.5
            assert relative_error(output(step, images), model(images)) < limit, name
        x[:, :, 20, 20] = float('nan')
        for name, step in steps.items():  # as the README says
            hides = 'OpenVINO' in name or 'int8' in name
            assert bool(output(step, x).isfinite().all()) == hides, name


def test_rounds_hold_one_sample_of_each_form():
    calls = []
    steps = {name: lambda x, name=name: calls.append((name, len(x))) for name in 'abc'}
    images = [torch.zeros(1), torch.zeros(2)]
    ticks = itertools.count()
    samples = time_forms(steps, images, 0, lambda: next(ticks))
    assert samples == dict.fromkeys('abc', [1] * 5)
    assert sorted(calls[:6]) == [(name, n) for name in 'abc' for n in (1, 2)]  # to warm up
    rounds = [calls[6 + 3 * i : 9 + 3 * i] for i in range(5)]
    assert [{n for _, n in one} for one in rounds] == [{1}, {2}, {1}, {2}, {1}]
    assert all(sorted(name for name, _ in one) == ['a', 'b', 'c'] for one in rounds)
    assert len({tuple(name for name, _ in one) for one in rounds}) > 1  # in random order


def test_the_fastest_comes_first(monkeypatch):
    """Clock and forms are replaced: a form that takes 3 ticks where eager takes 2 and int8 1."""
    now = [0.0]

    def taking(ticks):
        def step(x):
            now[0] += ticks

        return step

    def make(model, images, folder, slow, forms):
        assert not slow
        steps = {'control': taking(2), 'eager': taking(2), 'deployed': taking(3), 'int8': taking(1)}
        return steps, {'int8': 7}, {'other': 'needs other'}

    monkeypatch.setattr(measure, 'make_forms', make)
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: now[0])
    before = torch.get_num_threads()
    found = compare_forms(TINY, seconds=1e-9, threads=1)
    assert torch.get_num_threads() == before
    assert [one.form for one in found.timings] == ['int8', 'eager', 'deployed']
    assert [one.ratio.median for one in found.timings] == [0.5, 1, 1.5]
    assert [one.milliseconds for one in found.timings] == [1000, 2000, 3000]
    assert [one.bytes for one in found.timings] == [7, None, None]
    assert found.usable
    for median, usable in ((0.94, False), (0.96, True), (1.06, False)):
        assert found._replace(control=Ratio(median, median, median)).usable == usable
    assert found.left_out == {'other': 'needs other'}
    assert (found.fastest(), found.fastest(exact=True)) == (['int8'], ['eager'])


def test_a_form_that_cannot_be_made_is_left_out(monkeypatch):
    def fail(model):
        raise OSError('no room\nmore')

    monkeypatch.setattr(measure, 'reparameterize_model', fail)
    monkeypatch.setattr(measure, 'FORMS', {'eager': '', 'deployed': ''})
    found = compare_forms(TINY, img_size=32, seconds=1e-9)
    assert [one.form for one in found.timings] == ['eager']
    assert found.left_out == {'deployed': 'no room'}


def test_one_file_of_openvino_serves_three_forms(tmp_path, monkeypatch):
    """float32 and bfloat16 run it, and int8 is made of it."""
    made = []

    def export(model, path: Path, format, **kwargs):
        made.append((format, kwargs))
        path.touch()

    def quantize(plain, path, images, batch):
        made.append((plain.name, images.shape, batch))

    monkeypatch.setattr(measure, 'require', lambda *args: None)
    monkeypatch.setattr(measure, 'export_model', export)
    monkeypatch.setattr(measure, 'quantize_file', quantize)
    monkeypatch.setattr(measure, 'Runner', lambda *args: args)
    images = [torch.zeros(4, 3, 64, 64)]
    for form, name, precision in (('float32', '', 'f32'), ('bfloat16', '', 'bf16'),
                                  ('int8', 'int8-', 'f32')):  # fmt: skip
        path = tmp_path / f'{name}openvino.xml'
        found = make_form(f'OpenVINO, {form}', nn.Identity(), images, tmp_path, 1)
        assert found == ((path, 1, precision), path)
    exported = 'openvino', {'static': True, 'img_size': 64, 'batch_size': 4}
    assert made == [exported, ('openvino.xml', (32, 3, 64, 64), 4)]


@pytest.mark.slow
@needs_compiler
def test_frozen_weights_are_constants(tmp_path):
    """In every grad mode and for every size, because each compiles again."""
    torch.compiler.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval().requires_grad_(False)
    images = [image(1, 8), image(1, 12)]
    run = measure.freeze(model, True)

    def outputs():
        for mode, x in itertools.product((torch.no_grad, torch.inference_mode), images):
            with mode():
                yield run(x).clone()

    expected = list(outputs())
    assert not torch._inductor.config.freezing
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].running_mean.add_(1)
    for found, before in zip(outputs(), expected, strict=True):
        assert relative_error(found, before) < 1e-5
    torch.compiler.reset()
