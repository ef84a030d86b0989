"""A model as a file for other runtimes, checked by running it."""

import contextlib
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..deploy import reparameterize_model
from ..files import check_writable
from ..folder import load_model

__all__ = ['FORMATS', 'Exported', 'export_model']

INPUT = 'image'
# Relative, in float32: every format keeps the operations and orders their sums as it likes
TOLERANCE = 1e-4
# Past 32 px the last level has more than one pixel, so that no size there is a special case
_SMALLEST = 33

_SIZES = {
    0: '{0}',
    1: f'any batch, any size from {_SMALLEST} px',
    32: 'any batch, multiples of 32 px from 64 px',
}
# of a cfg, what goes into the file
_DESCRIBING = (
    'architecture', 'tag', 'num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct',
    'label_names', 'license',
)  # fmt: skip

Arrays = tuple[torch.Tensor, ...]
Run = Callable[[torch.Tensor], Sequence[Any]]


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        path: The file.
        format: One of `FORMATS`.
        outputs: Names of the outputs.
        sizes: What sizes of images it takes, in words.
        error: Largest difference from the model's outputs in the check run, relative to the largest
            output.
    """

    path: Path
    format: str
    outputs: tuple[str, ...]
    sizes: str
    error: float


class _Tuple(nn.Module):
    """A model whose output is a tuple, whether it has one or is a list of features."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> Arrays:
        """Run the model on (B, in_chans, H, W)."""
        out = self.model(image)
        return tuple(out) if isinstance(out, list | tuple) else (out,)


# --- torch.export, which ONNX and AOTInductor start from ----------------------------------------


def _dynamic_shapes(step: int) -> dict[str, dict[int, Any]]:
    dim = torch.export.Dim
    if step == 1:
        sizes = [dim(name, min=_SMALLEST) for name in ('height', 'width')]
    else:
        sizes = [step * dim(f'{name}_over_{step}', min=2) for name in ('height', 'width')]
    return {INPUT: {0: dim('batch'), 2: sizes[0], 3: sizes[1]}}


def _export(model: nn.Module, x: torch.Tensor) -> tuple[Any, int]:
    """The exported program, and the step between the image sizes that it takes."""
    try:
        model(_larger(x, 1))
        return torch.export.export(model, (x,), dynamic_shapes=_dynamic_shapes(1)), 1
    except RuntimeError:  # torch.export's own errors are such, too
        # strides that round up, and branches that meet again, fit for multiples of 32 alone
        return torch.export.export(model, (x,), dynamic_shapes=_dynamic_shapes(32)), 32


# --- formats: write a file, and say how to run it -----------------------------------------------


def _onnx(
    program: Any, x: torch.Tensor, step: int, outputs: list[str], meta: str, path: Path
) -> Run:
    import onnxruntime

    made: Any = torch.onnx.export(
        program,
        (x,),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=outputs,
        dynamic_shapes=_dynamic_shapes(step) if step else None,
    )
    made.model.metadata_props['timm_res2net'] = meta
    made.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda image: session.run(None, {INPUT: image.numpy()})


def _pt2(
    program: Any, x: torch.Tensor, step: int, outputs: list[str], meta: str, path: Path
) -> Run:
    torch.export.save(program, path, extra_files={'timm_res2net.json': meta})
    return torch.export.load(path).module()


def _aoti(
    program: Any, x: torch.Tensor, step: int, outputs: list[str], meta: str, path: Path
) -> Run:
    inductor: Any = torch._inductor
    configs = {'aot_inductor.metadata': {'timm_res2net': meta}}
    inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    return inductor.aoti_load_package(str(path))


def _torchscript(
    model: Any, x: torch.Tensor, step: int, outputs: list[str], meta: str, path: Path
) -> Run:
    with warnings.catch_warnings():
        # torch says that TorchScript is deprecated, to those who ask for it
        warnings.filterwarnings('ignore', '`torch.jit', DeprecationWarning)
        warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)
        traced = torch.jit.trace(model, x, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={'timm_res2net.json': meta})
        return torch.jit.load(str(path))


class _Format(NamedTuple):
    write: Callable[..., Run]
    suffix: str
    exports: bool  # starts from torch.export
    packages: tuple[str, ...] = ()


FORMATS = {
    'onnx': _Format(_onnx, '.onnx', True, ('onnx', 'onnxscript', 'onnxruntime')),
    'pt2': _Format(_pt2, '.pt2', True),
    'aoti': _Format(_aoti, '.pt2', True),
    'torchscript': _Format(_torchscript, '.pt', False),
}
"""What `export_model` writes: ONNX (for ONNX Runtime, OpenVINO, TensorRT), the program of
torch.export, the same compiled by AOTInductor for machines like this one, and a TorchScript
trace."""


def _format(name: str, out: Path) -> _Format:
    if name not in FORMATS:
        raise ValueError(f'Unknown format {name!r}. Use one of {", ".join(FORMATS)}.')
    for package in FORMATS[name].packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"Format '{name}' needs {package}. Install it: pip install 'timm-res2net[export]'."
            )
    suffix = FORMATS[name].suffix
    if out.suffix != suffix:  # what opens such files goes by it
        raise ValueError(f"Name the file for format '{name}' {out.stem}{suffix}, not {out.name}.")
    return FORMATS[name]


@contextlib.contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Turn what an exporter raises into one sentence with a remedy."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # torch, onnxscript and a C++ compiler fail in their own ways
        first = next((line for line in str(error).splitlines() if line.strip()), '')
        raise ValueError(
            f'{what} failed ({type(error).__name__}: {first.strip()[:300]}). Try another size (a '
            'multiple of 32 px), a fixed one (--static), or another format.'
        ) from error


def export_model(
    target: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str = 'onnx',
    *,
    features: bool = False,
    out_indices: Sequence[int] | int = (1, 2, 3, 4),
    deploy: bool = False,
    static: bool = False,
    img_size: int | None = None,
    batch_size: int = 1,
    pretrained: bool = True,
) -> Exported:
    """Write a model as a file for another runtime, in float32.

    What was written is run on images of other sizes and batches than it was exported with, and
    compared with the model; only then does it take its name. The input is called 'image', (B,
    in_chans, H, W), normalized; outputs are 'logits', (B, num_classes), or the features' names,
    (B, C, H / stride, W / stride). A JSON text in the file says how images are prepared. torch's
    formats answer a tuple of outputs. A static AOTInductor file does not look at the shape it is
    given unless AOTI_RUNTIME_CHECK_INPUTS=1 is in the environment: for another it answers nonsense.

    Args:
        target: Registered name of a Res2Net, or of another network of timm with such levels; a
            folder; or a repository (OWNER/NAME or hf-hub:OWNER/NAME).
        out: File to write. It must not be there.
        format: One of `FORMATS`.
        features: Export the feature levels instead of the classifier.
        out_indices: Which of them, as for `features_only`.
        deploy: Export the deploy form (`reparameterize_model`).
        static: Fix batch and size instead of leaving them free.
        img_size: Side of the square image that it is exported with, in px; the cfg's when None. At
            least 33 unless `static`.
        batch_size: Images that it is exported with.
        pretrained: Load weights.

    Returns:
        What was written, with the error of the check run.

    Raises:
        ValueError: An unknown format or model, a missing package, a size or batch that is no whole
            number of at least 1, what the format cannot do, outputs that differ by more than 1e-4.
        OSError: `out` is there already or cannot be written.
    """
    kind = _format(format, Path(out))
    for name, value in (('img_size', img_size), ('batch_size', batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f'{name} must be a whole number of at least 1, got {value!r}.')
    if img_size is not None and not static and img_size < _SMALLEST:
        raise ValueError(
            f'img_size={img_size} is below {_SMALLEST} px, from which sizes stay free. Use a '
            'larger one, or static=True (--static).'
        )
    path = check_writable(Path(out))
    levels: dict[str, Any] = dict(features_only=True, out_indices=out_indices) if features else {}
    try:
        model: Any = load_model(target, pretrained, **levels).eval()
    except (IndexError, AssertionError) as error:  # how timm says so
        raise ValueError(
            f'{target} has no feature levels {out_indices}. Give a network with five, such as a '
            'Res2Net.'
        ) from error
    cfg = model.pretrained_cfg
    in_chans, *size = cfg['input_size']
    if img_size is not None:
        size = [img_size, img_size]
    outputs = list(model.feature_info.module_name()) if features else ['logits']
    meta = {key: cfg[key] for key in _DESCRIBING if cfg.get(key) is not None}
    meta['input_size'] = [in_chans, *size]
    if deploy:
        model = reparameterize_model(model)
    whole = _Tuple(model).eval().requires_grad_(False)
    # unless it is to be fixed: a batch of 1 would be taken for a constant
    x = _images(batch_size if static else max(batch_size, 2), in_chans, *size)
    what = f'Exporting {target} as {format} for images of {size[0]} x {size[1]} px'
    with (
        torch.no_grad(),
        _explaining(what),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}-') as made,
    ):
        step = 0 if static else 32
        subject: Any = whole
        if kind.exports and static:
            subject = torch.export.export(whole, (x,))
        elif kind.exports:
            subject, step = _export(whole, x)
        temporary = Path(made) / path.name
        run = kind.write(subject, x, step, outputs, json.dumps(meta), temporary)
        difference = _compare(whole, run, x, step)
        if not difference <= TOLERANCE:
            raise ValueError(
                f'{what} gave a file whose outputs differ from the model by {difference:.1e} of '
                f'the largest, more than {TOLERANCE:.0e}. Nothing was written; use another format.'
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    sizes = _SIZES[step].format(tuple(x.shape))
    if not kind.exports and not static:
        sizes = 'any batch, any size that the model takes'
    return Exported(path, format, tuple(outputs), sizes, difference)


def _images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _larger(x: torch.Tensor, step: int) -> torch.Tensor:
    """An image of another size than those of x, in steps."""
    return _images(1, x.shape[1], x.shape[2] + step, x.shape[3] + 2 * step)


def _compare(model: nn.Module, run: Run, x: torch.Tensor, step: int) -> float:
    """Largest difference between a model's outputs and a file's, relative to the largest output.

    Args:
        model: The model.
        run: Runs the file.
        x: Images that it was exported with.
        step: Between image sizes that the file takes; 0 if it takes those of x alone.
    """
    errors = []
    images = [x]
    if step:
        smallest = _SMALLEST if step == 1 else 2 * step
        images += [_larger(x, step), _images(2, x.shape[1], smallest, smallest)]
    for image in images:
        for expected, got in zip(model(image), run(image), strict=True):
            difference = (torch.as_tensor(got) - expected).abs().max()
            errors.append(float(difference / expected.abs().max().clamp_min(1e-30)))
    return float(torch.tensor(errors).max())  # NaN, if there is one
