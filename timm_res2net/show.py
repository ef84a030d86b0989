"""A picture of what a model sees in an image: its levels, the splits of a block, its answer."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from timm.data import (
    ImageNetInfo,
    create_transform,
    infer_imagenet_subset,
    resolve_model_data_config,
)
from torch import nn
from torch.nn import functional as F

from .deploy import is_block
from .files import check_writable, write_file
from .layers.fused_block import adds_splits
from .resolve import load_model

__all__ = ['Seen', 'Shown', 'activation_map', 'labels_of', 'look', 'show']

_MODES = {1: 'L', 3: 'RGB'}  # what Pillow calls images of so many channels
_DIGITS = Path(__file__).parent / 'weights' / 'digits.png'


class Shown(NamedTuple):
    """What was drawn.

    Attributes:
        path: The picture.
        top: The likeliest labels with their probabilities, none for a model without classes.
        levels: Name, channels, height and width of each feature level.
    """

    path: Path
    top: tuple[tuple[str, float], ...]
    levels: tuple[tuple[str, int, int, int], ...]


class Seen(NamedTuple):
    """What a model makes of one image.

    Attributes:
        levels: Feature maps (C, H / stride, W / stride) by name.
        splits: Maps (width, H', W') of the splits of one block, behind their convolutions, by the
            block's name; none for a network without such blocks.
        logits: (num_classes,); empty without classes.
        evidence: (H / 32, W / 32) map of what speaks for the likeliest class; None without classes.
    """

    levels: dict[str, torch.Tensor]
    splits: tuple[str, tuple[torch.Tensor, ...]]
    logits: torch.Tensor
    evidence: torch.Tensor | None


def labels_of(model: Any) -> list[str]:
    """Names of a model's classes: its cfg's, ImageNet's where their number says so, or numbers."""
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        return list(names.values() if isinstance(names, dict) else names)
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return [info.index_to_description(i) for i in range(model.num_classes)]
    return [str(i) for i in range(model.num_classes)]


def activation_map(features: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    """Where the evidence for a class stands: the features times the logit's gradient, summed over
    channels (HiResCAM, arXiv:2011.08891).

    With average pooling it is the class-activation map of arXiv:1512.04150 divided by the number of
    its places. A linear head makes its sum the logit less its bias, whatever the pooling.

    Args:
        features: (1, C, H, W), which `logit` was computed from with gradients on.
        logit: The class's logit, a number.

    Returns:
        (H, W)
    """
    (gradient,) = torch.autograd.grad(logit, features)
    return (features * gradient).sum(1)[0].detach()


def _cascades(module: Any) -> bool:
    """Whether a module is a Res2Net block whose splits build upon each other."""
    return is_block(module) and module.scale > 1 and adds_splits(module)


def look(model: Any, image: torch.Tensor) -> Seen:
    """Run a model on an image and keep what it sees on the way.

    Args:
        model: A model of timm in eval mode.
        image: (1, in_chans, H, W), normalized.

    Raises:
        ValueError: The model gives no features on the way, or such as are no maps.
    """
    if not hasattr(model, 'forward_intermediates'):
        raise ValueError(
            f'{type(model).__name__} gives no features on the way. HRNets do from timm 1.0.31 on.'
        )
    blocks = [(key, m) for key, m in model.named_modules() if _cascades(m)]
    # an early one: its maps are still large enough to look at
    block_name, block = blocks[len(blocks) // 3] if blocks else ('', None)
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].detach())

    handle = block.conv3.register_forward_pre_hook(keep) if block is not None else None
    try:
        with torch.enable_grad():
            last, levels = model.forward_intermediates(image)
            if last.ndim != 4:
                raise ValueError(
                    f'{type(model).__name__} has no feature maps of height and width. Show a '
                    'convolutional network.'
                )
            logits = model.forward_head(last)
            has_classes = model.num_classes > 0
            evidence = activation_map(last, logits[0].max()) if has_classes else None
    finally:
        if handle is not None:
            handle.remove()
    names = [info['module'] for info in model.feature_info]
    splits = tuple(seen[0][0].chunk(block.scale)) if block is not None else ()
    return Seen(
        {name: level[0].detach() for name, level in zip(names, levels, strict=True)},
        (block_name, splits),
        logits[0].detach() if has_classes else logits.new_empty(0),
        evidence,
    )


def _open(path: Path | None, in_chans: int) -> Image.Image:
    if in_chans not in _MODES:
        raise ValueError(f'An image file has 1 or 3 channels, and the model takes {in_chans}.')
    if path is None:  # a digit of the package
        strip = Image.open(_DIGITS)
        return strip.crop((3 * strip.height, 0, 4 * strip.height, strip.height)).convert(
            _MODES[in_chans]
        )
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith('I'):  # 16 bits, which Pillow would cut off at 255
            image = image.convert('I').point(lambda value: value / 256)
        return image.convert(_MODES[in_chans])
    except FileNotFoundError as error:
        raise FileNotFoundError(f'There is no image {path}.') from error
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f'Cannot read {path} as an image ({error}).') from error


def show(
    target: str | os.PathLike[str],
    image: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    pretrained: bool = True,
) -> Shown:
    """Draw what a model sees in an image.

    Above: the image as the model gets it, what in it speaks for the likeliest class, and the five
    likeliest. Then the mean over channels of each feature level, and of each split of one block,
    all enlarged to the image's size.

    Args:
        target: Registered name of this package or timm's (a network of convolutions), folder, or
            repository.
        image: File of an image; one of the package's digits when None.
        out: PNG to write. It must not be there.
        pretrained: Load weights.

    Raises:
        ValueError: An unknown model, an image that is none, a model of other than 1 or 3 channels,
            matplotlib is not there, or `out` does not end in .png.
        OSError: There is no image, or `out` is there already or cannot be written.
    """
    if importlib.util.find_spec('matplotlib') is None:
        raise ValueError("A picture needs matplotlib: pip install 'timm-res2net[plots]'.")
    path = check_writable(Path(out))
    if path.suffix.lower() != '.png':
        raise ValueError(f'Name the picture {path.stem}.png, not {path.name}.')
    model = load_model(target, pretrained).eval()
    data = resolve_model_data_config(model)
    opened = _open(None if image is None else Path(image), data['input_size'][0])
    x = create_transform(**data)(opened)[None]
    seen = look(model, x)
    labels = labels_of(model)
    shares, classes = seen.logits.softmax(0).topk(min(5, len(labels)))
    top = tuple((labels[int(i)], float(share)) for share, i in zip(shares, classes, strict=True))
    title = str(target) if pretrained else f'{target} (random weights)'
    _draw(path, title, _pixels(x[0], data), seen, top)
    sizes = tuple((name, *level.shape) for name, level in seen.levels.items())
    return Shown(path, top, sizes)


def _pixels(x: torch.Tensor, data: dict[str, Any]) -> Any:
    """A normalized image (C, H, W) as (H, W, 3) numbers from 0 to 1."""
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ('mean', 'std'))
    pixels = (x * std + mean).clamp(0, 1)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _enlarged(level: torch.Tensor, like: Any) -> Any:
    """A map (H', W') at the size of an image, each value a square, so that its fineness shows."""
    return F.interpolate(level[None, None], like.shape[:2], mode='nearest')[0, 0].numpy()


def _draw(
    path: Path, title: str, pixels: Any, seen: Seen, top: tuple[tuple[str, float], ...]
) -> None:
    from matplotlib.figure import Figure

    block_name, splits = seen.splits
    figure = Figure(figsize=(13, 8.6 if splits else 6), layout='constrained')
    rows: Any = figure.subfigures(3 if splits else 2, 1)
    rows[0].suptitle(_plain(title))
    cells = rows[0].subplots(1, 3, width_ratios=(1, 1, 2))
    for cell in cells:
        cell.axis('off')
    cells[0].imshow(pixels)
    cells[0].set_title(f'image, {pixels.shape[0]} x {pixels.shape[1]} px', fontsize=9)
    if seen.evidence is not None:
        evidence = F.interpolate(
            seen.evidence[None, None], pixels.shape[:2], mode='bicubic', align_corners=False
        )[0, 0]
        cells[1].imshow(pixels.mean(2), cmap='gray')
        limit = float(evidence.abs().max()) or 1.0
        cells[1].imshow(evidence.numpy(), cmap='coolwarm', vmin=-limit, vmax=limit, alpha=0.6)
        cells[1].set_title(f'for (red) and against {_short(top[0][0])}', fontsize=9)
        bars = cells[2]
        bars.axis('on')
        names = [_short(name, 40) for name, _ in top][::-1]
        bars.barh(range(len(top)), [share for _, share in top][::-1], color='tab:red')
        bars.set_yticks(range(len(top)), names, fontsize=9)
        for place, (_, share) in enumerate(top[::-1]):
            bars.text(share, place, f' {100 * share:.1f} %', va='center', fontsize=8)
        bars.set_xlim(0, 1.2 * top[0][1])
        bars.set_title('probability', fontsize=9)
    rows[1].suptitle('feature levels, mean over channels', fontsize=10)
    for cell, (name, level) in zip(
        rows[1].subplots(1, len(seen.levels)), seen.levels.items(), strict=True
    ):
        cell.imshow(_enlarged(level.mean(0), pixels))
        channels, height, width = level.shape
        cell.set_title(f'{name}: {channels} channels, {height} x {width}', fontsize=9)
        cell.axis('off')
    if splits:
        text = f'splits of {block_name}: what each sees of its input; the last is passed on'
        rows[2].suptitle(text, fontsize=10)
        cells = rows[2].subplots(1, len(splits))
        for i, (cell, split) in enumerate(zip(cells, splits, strict=True)):
            cell.imshow(_enlarged(split.mean(0), pixels))
            is_last = i == len(splits) - 1
            cell.set_title('passed' if is_last else f'{2 * i + 3} x {2 * i + 3}', fontsize=9)
            cell.axis('off')
    write_file(path, lambda file: figure.savefig(file, format='png', dpi=100))


def _plain(text: str) -> str:
    return text.replace('$', r'\$')  # no formula


def _short(text: str, length: int = 24) -> str:
    first = text.split(',')[0]
    return _plain(first if len(first) <= length else f'{first[: length - 1]}…')
