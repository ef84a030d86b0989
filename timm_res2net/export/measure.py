"""Time a model in every form that this machine can run, and say which is fastest."""

import copy
import logging
import os
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..files import require, temporary_folder
from ..layers.text import first_line
from ..models.deploy import reparameterize_model
from . import export_model, load_network
from .formats import FORMATS, noise
from .int8 import quantize_file, size_of
from .run import Run, Runner

_logger = logging.getLogger(__name__)

CONTROL = 0.05
"""Largest share by which the time of a second copy of the model may differ from that of the first.
If it differs by more, something else runs on the machine, and the times are of no use."""

SPREAD = 0.1
"""Largest `half_width` of the fastest form, for the same reason."""

FORMS = {
    'eager': '',
    'deployed': '',
    'torch.compile, frozen': '',
    'AOTInductor': 'aoti',
    'ONNX Runtime': 'onnx',
    'ONNX Runtime, int8': 'onnx',
    'OpenVINO, float32': 'openvino',
    'OpenVINO, bfloat16': 'openvino',
    'OpenVINO, int8': 'openvino',
    'deployed, bfloat16': '',
}
"""Ways to run a model on a CPU, by name, with the format of their files; '' for those without."""

SLOW = ('torch.compile, frozen', 'AOTInductor')
"""Forms that take minutes to make."""


class Ratio(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Distance from the median to the farther end of the interval, as a share of the median."""
        return max(self.high - self.median, self.median - self.low) / self.median

    def __str__(self) -> str:
        return f'{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]'


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the median, of 95 % (Efron 1979).

    The same samples give the same interval.
    """
    # numpy keeps the numbers of RandomState between versions, unlike those of its generators
    drawn = np.random.RandomState(0).randint(len(values), size=(draws, len(values)))
    medians = np.median(np.asarray(values, dtype=float)[drawn], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def ratio(subject: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Return the median of the per-round ratios subject / baseline.

    A round holds one sample of each, taken one right after the other. Whatever slows the machine
    for longer than a round slows both and leaves the ratio unchanged.
    """
    ratios = [s / b for s, b in zip(subject, baseline, strict=True)]
    return Ratio(float(np.median(ratios)), *interval(ratios))


class Timing(NamedTuple):
    """The time of a form.

    Attributes:
        form: Its name in `FORMS`.
        milliseconds: Median time of a call.
        ratio: Time over that of the model in eager mode: the median of rounds, in each of which
            every form runs once, with its 95 % interval.
        bytes: Size of its file; None if it has none.
    """

    form: str
    milliseconds: float
    ratio: Ratio
    bytes: int | None = None


class Comparison(NamedTuple):
    """The forms of a model, timed side by side.

    Attributes:
        timings: The forms from the fastest to the slowest; 'eager' is among them.
        control: Time of a second copy of the model over that of the first.
        left_out: Forms that were not timed, with the reason.
    """

    timings: tuple[Timing, ...]
    control: Ratio
    left_out: Mapping[str, str]

    @property
    def usable(self) -> bool:
        """Whether the control is within `CONTROL` of 1, and the fastest form within `SPREAD`."""
        spread = self.timings[0].ratio.half_width
        return abs(self.control.median - 1) <= CONTROL and spread <= SPREAD

    def fastest(self, exact: bool = False) -> list[str]:
        """Return the fastest form, and those whose intervals overlap its own.

        With `exact`, only forms in float32 count.
        """
        loses = [word for word in ('int8', 'bfloat16') if exact]
        ones = [one for one in self.timings if not any(word in one.form for word in loses)]
        return [one.form for one in ones if one.ratio.low <= ones[0].ratio.high]


def freeze(model: nn.Module, dynamic: bool | None = None) -> Run:
    """Compile a model with its weights as constants, so that they are folded and packed.

    Inductor's switch is on while the model runs and off in between, because a call in another grad
    mode or with another size compiles again. Dynamo reads it too, so it has no effect as an option
    of `torch.compile`.

    Args:
        model: A model in eval mode. It is compiled in place.
        dynamic: As in `torch.compile`.

    Returns:
        What runs the model under `torch.no_grad()`: with gradients inductor does not freeze.
    """
    model.compile(dynamic=dynamic)
    frozen = torch._inductor.config.patch(freezing=True)  # once: every patch stays in memory

    def run(images: torch.Tensor) -> Any:
        with frozen:
            return model(images)

    return run


def make_form(
    form: str, model: nn.Module, images: Sequence[torch.Tensor], folder: Path, threads: int
) -> tuple[Run, Path | None]:
    """Return what runs a form, and its file, if it has one.

    Args:
        form: A key of `FORMS`.
        model: The model in eval mode. A form whose file exists needs none.
        images: Images (B, in_chans, H, W) of every shape that the form will get. If there is only
            one, the file takes no other.
        folder: Folder for the files. A file that it has is used.
        threads: Number of threads of runtimes other than torch.
    """
    format = FORMS[form]
    if form == 'eager':
        return model, None
    if form == 'deployed':
        return reparameterize_model(model), None
    if form == 'deployed, bfloat16':
        has: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()  # not in torch 2.6
        if not (has.get('avx512_bf16') or has.get('amx_bf16')):
            raise ValueError('torch does not find AVX-512 BF16 or AMX in this processor')
        low = reparameterize_model(model).bfloat16()
        return lambda images: low(images.bfloat16()), None
    static = len(images) == 1
    if not format:
        step = freeze(copy.deepcopy(model), dynamic=None if static else True)
        with torch.inference_mode():  # as it will run
            step(images[0])
        return step, None
    batch, *shape = images[0].shape
    if 'int8' in form:
        require('int8', 'nncf')
    plain = path = folder / f'{format}{FORMATS[format].suffix}'
    if not plain.exists():
        export_model(model, plain, format, static=static, img_size=shape[1], batch_size=batch)
    if 'int8' in form:
        path = plain.with_name(f'int8-{plain.name}')
        if not path.exists():  # noise calibrates it, which does not change its time
            calibration = noise(max(32 // batch, 1) * batch, *shape)
            quantize_file(plain, path, calibration.numpy(), batch)
    return Runner(path, threads, 'bf16' if 'bfloat16' in form else 'f32'), path


def compare_forms(
    target: nn.Module | str | os.PathLike[str],
    *,
    batch_size: int = 1,
    img_size: int | None = None,
    slow: bool = False,
    seconds: float = 30,
    threads: int | None = None,
) -> Comparison:
    """Time a model in every form that this machine can run, on images of one shape.

    The weights do not matter, so none are loaded for a name. In each round every form runs
    once, in random order, and a form's figure is the median of its ratios to the model in eager
    mode. A second copy of the model is the control.

    Args:
        target: As in `export_model`.
        batch_size: Images in a call.
        img_size: Side of the images in px; by default that of the model's cfg.
        slow: Also time the forms that take minutes to make.
        seconds: How long to time. Making the forms takes longer.
        threads: Number of threads; by default as many as torch uses.

    Raises:
        ValueError: `target` is not a model.

    Example:
        >>> from timm_res2net.export.measure import compare_forms
        >>> comparison = compare_forms('test_res2net_se', img_size=64, seconds=0.1)
        >>> 'deployed' in [timing.form for timing in comparison.timings]
        True
    """
    model = load_network(target, False, False, {}, img_size=img_size).model
    images = [torch.randn(batch_size, *model.pretrained_cfg['input_size'])]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        with temporary_folder() as folder:
            steps, sizes, left_out = make_forms(model, images, folder, slow, FORMS)
            samples = time_forms(steps, images, seconds, time.perf_counter)
    finally:
        torch.set_num_threads(threads_before)
    timings = [
        Timing(
            form, 1000 * statistics.median(times), ratio(times, samples['eager']), sizes.get(form)
        )
        for form, times in samples.items()
        if form != 'control'
    ]
    timings.sort(key=lambda timing: timing.ratio.median)
    return Comparison(tuple(timings), ratio(samples['control'], samples['eager']), left_out)


def make_forms(
    model: nn.Module,
    images: Sequence[torch.Tensor],
    folder: Path,
    slow: bool,
    forms: Collection[str],
) -> tuple[dict[str, Run], dict[str, int], dict[str, str]]:
    """Make forms of a model as `make_form` does, for as many threads as torch uses.

    Returns:
        What runs each form, with a second copy of the model as 'control'; the sizes of their files;
        and the forms that were left out, with the reason.
    """
    steps: dict[str, Run] = {'control': copy.deepcopy(model)}
    sizes, left_out = {}, {}
    for form in forms:
        if form in SLOW and not slow:
            left_out[form] = 'takes minutes to make'
            continue
        _logger.info(f'Making the form {form}')
        try:
            with torch.no_grad():
                steps[form], path = make_form(form, model, images, folder, torch.get_num_threads())
        except Exception as error:  # every compiler and runtime fails in its own way
            left_out[form] = first_line(error)
            continue
        if path is not None:
            sizes[form] = size_of(path)
    return steps, sizes, left_out


def time_forms(
    steps: Mapping[str, Run],
    images: Sequence[torch.Tensor],
    seconds: float,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Return the time of every form in every round, in seconds, as the clock says.

    Rounds take the images in turn, until the seconds are over; there are at least 5.
    """
    draw = random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    with torch.inference_mode():
        for x in images:  # the first calls compile and pack
            for step in steps.values():
                step(x)
        _logger.info(f'Timing {len(steps)} models for {seconds:.0f} seconds')
        end = time.monotonic() + seconds
        rounds = 0
        while rounds < max(5, len(images)) or time.monotonic() < end:
            x = images[rounds % len(images)]
            for name in draw.sample(list(steps), len(steps)):
                start = clock()
                steps[name](x)
                samples[name].append(clock() - start)
            rounds += 1
    return samples
