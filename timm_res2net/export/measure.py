"""Time a model in every form that this machine can run, and say which is fastest."""

import copy
import importlib.util
import logging
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..files import temporary_folder
from ..layers.text import first_line
from ..models.deploy import reparameterize_model
from . import (
    FORMATS,
    export_model,
    onnx,
    openvino,
)
from .base import check_counts
from .quantize import quantize_file, size_of
from .source import take
from .stats import Ratio, ratio

_logger = logging.getLogger(__name__)

Step = Callable[[torch.Tensor], object]
"""Runs a form on images (B, in_chans, H, W)."""

CONTROL = 0.05
"""Largest share by which the time of a second copy of the model may differ from that of the first.
If it differs by more, something else runs on the machine, and the times are of no use."""

_NOISE = 32  # images that calibrate int8 forms
_ROUNDS = 5  # at least


class Job(NamedTuple):
    """What a form is made from.

    Attributes:
        model: The model in eval mode.
        images: Images (B, in_chans, H, W) like those that it will get.
        static: Whether all images have this shape.
        folder: Where files are written; forms share those that they all need.
        threads: Number of threads.
    """

    model: nn.Module
    images: torch.Tensor
    static: bool
    folder: Path
    threads: int

    def export(self, format: str) -> Path:
        """Return the model as a file of a format, written when it is first asked for."""
        path = self.folder / f'{format}{FORMATS[format].suffix}'
        if not path.exists():
            export_model(
                self.model,
                path,
                format,
                static=self.static,
                img_size=self.images.shape[2],
                batch_size=len(self.images),
            )
        return path

    def export_int8(self, format: str) -> Path:
        """Return the model as an int8 file. Noise calibrates it, which does not change the time."""
        plain = self.export(format)
        path = plain.with_name(f'int8-{plain.name}')
        batch = len(self.images)
        noise = torch.randn(max(_NOISE // batch, 1) * batch, *self.images.shape[1:])
        quantize_file(FORMATS[format], plain, path, noise.numpy(), batch)
        return path


class Form(NamedTuple):
    """A way to run a model.

    Attributes:
        open: Returns what runs it, given what it is made from and its file.
        file: Writes its file; None if it has none.
        packages: Packages that it needs besides this one's.
        slow: Whether making it takes minutes.
    """

    open: Callable[[Job, Path], Step]
    file: Callable[[Job], Path] | None = None
    packages: tuple[str, ...] = ()
    slow: bool = False

    def make(self, job: Job) -> tuple[Step, Path | None]:
        """Return what runs it, and its file."""
        path = self.file(job) if self.file else None
        return self.open(job, path or job.folder), path


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
        """Whether the control is within `CONTROL` of 1."""
        return abs(self.control.median - 1) <= CONTROL


def freeze(model: nn.Module, dynamic: bool | None = None) -> Step:
    """Compile a model with its weights as constants, so that they are folded and packed.

    Inductor's switch is on while the model runs and off in between, because a call in another grad
    mode or with another size compiles again. Dynamo reads it too, so it has no effect as an option
    of `torch.compile`.

    Args:
        model: A model in eval mode. It is compiled in place.
        dynamic: As in `torch.compile`.

    Returns:
        What runs the model, and compiles it when needed. Call it under `torch.inference_mode()` or
        `torch.no_grad()`: with gradients inductor does not freeze.
    """
    model.compile(dynamic=dynamic)
    frozen = torch._inductor.config.patch(freezing=True)  # once: every patch stays in memory

    def run(images: torch.Tensor) -> object:
        with frozen:
            return model(images)

    return run


def _compile(model: nn.Module, job: Job) -> Step:
    step = freeze(model, dynamic=None if job.static else True)
    with torch.inference_mode():  # as it will run
        step(job.images)
    return step


def _open_aoti(job: Job, path: Path) -> Step:
    inductor: Any = torch._inductor
    return inductor.aoti_load_package(str(path))


def _open_onnx(job: Job, path: Path) -> Step:
    return onnx.load(path, job.threads)


def _open_openvino(precision: str) -> Callable[[Job, Path], Step]:
    return lambda job, path: openvino.load(path, precision, job.threads)


def _exported(format: str, precision: str = '', int8: bool = False, slow: bool = False) -> Form:
    """Return the form of an exported file; the precision is OpenVINO's."""
    open_file = {'aoti': _open_aoti, 'onnx': _open_onnx}.get(format) or _open_openvino(precision)
    packages = (*FORMATS[format].packages, *(['nncf'] if int8 else []))
    if int8:
        return Form(open_file, lambda job: job.export_int8(format), packages)
    return Form(open_file, lambda job: job.export(format), packages, slow)


FORMS: dict[str, Form] = {
    'eager': Form(lambda job, path: job.model),
    'deployed': Form(lambda job, path: reparameterize_model(job.model)),
    'torch.compile, frozen': Form(
        lambda job, path: _compile(copy.deepcopy(job.model), job), slow=True
    ),
    'AOTInductor': _exported('aoti', slow=True),
    'ONNX Runtime': _exported('onnx'),
    'ONNX Runtime, int8': _exported('onnx', int8=True),
    'OpenVINO, float32': _exported('openvino', 'f32'),
    'OpenVINO, bfloat16': _exported('openvino', 'bf16'),
    'OpenVINO, int8': _exported('openvino', 'f32', int8=True),
}
"""Ways to run a model on a CPU, by name."""


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
        ValueError: `target` is not a model; `batch_size`, `img_size` or `threads` is not a whole
            number of at least 1; or `seconds` is not a finite number above 0.

    Example:
        >>> from timm_res2net.export.measure import compare_forms
        >>> found = compare_forms('test_res2net_se', img_size=64, seconds=0.1)
        >>> 'deployed' in [timing.form for timing in found.timings]
        True
    """
    check_counts(batch_size=batch_size, img_size=img_size, threads=threads)
    if not 0 < seconds < math.inf:
        raise ValueError(
            f'seconds must be a finite number above 0, got {seconds!r}. Name another one.'
        )
    source = take(target, False, img_size, False, ())
    images = torch.randn(batch_size, *source.input_size)
    threads = threads or torch.get_num_threads()
    with temporary_folder() as made, _threads(threads):
        job = Job(source.model, images, True, made, threads)
        steps, sizes, left_out = make_forms(job, slow)
        samples = time_forms(steps, [images], seconds, time.perf_counter)
    timings = [
        Timing(
            form, 1000 * statistics.median(taken), ratio(taken, samples['eager']), sizes.get(form)
        )
        for form, taken in samples.items()
        if form != 'control'
    ]
    timings.sort(key=lambda timing: timing.ratio.median)
    return Comparison(tuple(timings), ratio(samples['control'], samples['eager']), left_out)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_forms(
    job: Job, slow: bool, names: Collection[str] | None = None
) -> tuple[dict[str, Step], dict[str, int], dict[str, str]]:
    """Make the forms of a model.

    Args:
        job: What they are made from.
        slow: Also make those that take minutes.
        names: Keys of `FORMS`; None for all.

    Returns:
        What runs each form, with a second copy of the model as 'control'; the sizes of their files;
        and the forms that were left out, with the reason.
    """
    steps: dict[str, Step] = {'control': copy.deepcopy(job.model)}
    sizes, left_out = {}, {}
    for name, form in FORMS.items():
        if names is not None and name not in names:
            continue
        missing = [
            package for package in form.packages if importlib.util.find_spec(package) is None
        ]
        if missing:
            left_out[name] = f'needs {", ".join(missing)}'
        elif form.slow and not slow:
            left_out[name] = 'takes minutes to make'
        else:
            _logger.info(f'Making the form {name}')
            try:
                with torch.no_grad():
                    steps[name], path = form.make(job)
            except Exception as error:  # every compiler and runtime fails in its own way
                left_out[name] = f'failed: {first_line(error)}'
                continue
            if path is not None:
                sizes[name] = size_of(path)
    return steps, sizes, left_out


def time_forms(
    steps: Mapping[str, Step],
    images: Sequence[torch.Tensor],
    seconds: float,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Return the time of every form in every round, in seconds.

    Args:
        steps: What runs each form.
        images: Images of each round in turn.
        seconds: How long to go on. There are at least 5 rounds.
        clock: Reads a clock in seconds.
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
        while rounds < max(_ROUNDS, len(images)) or time.monotonic() < end:
            x = images[rounds % len(images)]
            for name in draw.sample(list(steps), len(steps)):
                start = clock()
                steps[name](x)
                samples[name].append(clock() - start)
            rounds += 1
    return samples
