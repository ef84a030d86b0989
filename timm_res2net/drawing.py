"""Pictures of a model at work: its feature levels, the splits of a block and its predictions."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import resolve_model_data_config
from torch.nn import functional as F

from .files import check_writable, require, write_file
from .folder.checks import check_values
from .folder.config import MULTI_LABEL
from .hub.fetch import load_model
from .layers.fused_block import adds_splits
from .models.deploy import is_block
from .prediction import Images, labels_of, most_probable


class Shown(NamedTuple):
    """A drawn picture.

    Attributes:
        path: File of the picture.
        top: The most probable labels with their probabilities, none for a model without classes.
        levels: Name, channels, height and width of each feature level.
    """

    path: Path
    top: tuple[tuple[str, float], ...]
    levels: tuple[tuple[str, int, int, int], ...]


class Activations(NamedTuple):
    """Tensors of a model for one image.

    Attributes:
        levels: Feature maps (C, H / stride, W / stride) by name.
        splits: Name of a block and the outputs (width, H', W') of its splits. They are '' and ()
            if no block adds its splits.
        logits: Tensor (num_classes,), empty without classes.
        evidence: Map (H / 32, W / 32) of the evidence for the most probable class, None without
            classes. It is the product of the last features and the gradient of the class's logit,
            summed over channels (HiResCAM, arXiv:2011.08891). With a linear head, its sum is the
            logit minus its bias, for every pooling. With average pooling it is the class activation
            map (arXiv:1512.04150) divided by the number of its pixels.
    """

    levels: dict[str, torch.Tensor]
    splits: tuple[str, tuple[torch.Tensor, ...]]
    logits: torch.Tensor
    evidence: torch.Tensor | None


def activations(model: Any, image: torch.Tensor) -> Activations:
    """Run a model on an image and return its feature levels, splits, logits and evidence.

    Args:
        model: Model of timm in eval mode, to which a hook is added.
        image: Normalized image (1, in_chans, H, W).

    Raises:
        ValueError: The feature levels have no height and width.
    """
    blocks: list[tuple[str, Any]] = [  # those that add to each split the output before it
        (key, m)
        for key, m in model.named_modules()
        if is_block(m) and m.scale > 1 and adds_splits(m)
    ]
    # an early block, whose maps are still large
    block_name, block = blocks[len(blocks) // 3] if blocks else ('', None)
    joined: list[torch.Tensor] = []  # splits of the block, as its last convolution gets them
    if block is not None:
        block.conv3.register_forward_pre_hook(
            lambda module, inputs: joined.append(inputs[0].detach())
        )
    with torch.enable_grad():
        last, levels = model.forward_intermediates(image)
        if last.ndim != 4:
            raise ValueError(
                f'{type(model).__name__} has no feature maps with height and width. Show a '
                'convolutional network.'
            )
        logits = model.forward_head(last)
        evidence = None
        if has_classes := model.num_classes > 0:
            (gradient,) = torch.autograd.grad(logits[0].max(), last)
            evidence = (last * gradient).sum(1)[0].detach()
    names = [info['module'] for info in model.feature_info]
    splits = tuple(joined[0][0].chunk(block.scale)) if block is not None else ()
    return Activations(
        {name: level[0].detach() for name, level in zip(names, levels, strict=True)},
        (block_name, splits),
        logits[0].detach() if has_classes else logits.new_empty(0),
        evidence,
    )


def show(
    target: str | os.PathLike[str],
    image: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    pretrained: bool = True,
) -> Shown:
    """Draw the feature levels, the splits and the predictions of a model for an image.

    The first row has the prepared image, the evidence for the most probable class, and the five
    most probable classes. The second row has each feature level, and the third row each split of
    one block, as means over channels at the size of the image.

    Args:
        target: Registered name of this package or of timm (a convolutional network), folder, or
            repository.
        image: Image file, or None for a digit of the package.
        out: PNG file to write. It must not exist.
        pretrained: Load weights.

    Returns:
        The path, the predictions and the levels of the picture.

    Raises:
        ValueError: An unknown model, a file that is not an image, a model that does not take 1 or 3
            channels, weights that are not finite, an `out` that does not end in .png, or a missing
            matplotlib.
        OSError: The image does not exist, or `out` exists or cannot be written.

    >>> import tempfile
    >>> from timm_res2net import show
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shown = show('test_res2net_se', None, f'{folder}/digit.png')
    >>> shown.top[0][0]  # the label of the digit
    '3'
    """
    require('plots', 'matplotlib')
    from matplotlib import rc_context

    path = check_writable(Path(out))
    if path.suffix.lower() != '.png':
        raise ValueError(f'The picture is a PNG: name it {path.stem}.png instead of {path.name}.')
    model: Any = load_model(target, pretrained).eval()
    check_values(model, f'{target} was not run: ')
    x = Images(model).load(image)[None]
    tensors = activations(model, x)
    labels = labels_of(model)
    multi_label = model.pretrained_cfg.get('problem_type') == MULTI_LABEL
    (top,) = most_probable(tensors.logits[None], labels, 5, multi_label)
    title = str(target) if pretrained else f'{target} (random weights)'
    data = resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ('mean', 'std'))
    pixels = (x[0] * std + mean).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
    with rc_context({'text.parse_math': False}):  # a $ in a label starts no formula
        _draw(path, title, pixels, tensors, top)
    sizes = tuple((name, *level.shape) for name, level in tensors.levels.items())
    return Shown(path, top, sizes)


def enlarged(level: torch.Tensor, like: Any) -> Any:
    """Enlarge a map (H', W') to the size of an image, without smoothing, so that pixels show."""
    return F.interpolate(level[None, None], like.shape[:2], mode='nearest')[0, 0].numpy()


def _draw(
    path: Path, title: str, pixels: Any, tensors: Activations, top: tuple[tuple[str, float], ...]
) -> None:
    """Draw the picture of `show` and write it."""
    from matplotlib.figure import Figure

    block_name, splits = tensors.splits
    figure = Figure(figsize=(13, 8.6 if splits else 6), layout='constrained')
    rows: Any = figure.subfigures(3 if splits else 2, 1)
    rows[0].suptitle(title)
    cells = rows[0].subplots(1, 3, width_ratios=(1, 1, 2))
    for cell in cells:
        cell.axis('off')
    cells[0].imshow(pixels)
    cells[0].set_title(f'image, {pixels.shape[0]} x {pixels.shape[1]} px', fontsize=9)
    if tensors.evidence is not None:
        evidence = F.interpolate(
            tensors.evidence[None, None], pixels.shape[:2], mode='bicubic', align_corners=False
        )[0, 0]
        cells[1].imshow(pixels.mean(2), cmap='gray')
        limit = float(evidence.abs().max()) or 1.0
        cells[1].imshow(evidence.numpy(), cmap='coolwarm', vmin=-limit, vmax=limit, alpha=0.6)
        cells[1].set_title(f'evidence for (red) and against {_short(top[0][0])}', fontsize=9)
        bars = cells[2]
        bars.axis('on')
        names = [_short(name, 40) for name, _ in top][::-1]
        drawn = bars.barh(range(len(top)), [share for _, share in top][::-1], color='tab:red')
        bars.set_yticks(range(len(top)), names, fontsize=9)
        bars.bar_label(drawn, [f' {100 * share:.1f} %' for _, share in top[::-1]], fontsize=8)
        bars.set_xlim(0, 1.2 * top[0][1])
        bars.set_title('probability', fontsize=9)
    rows[1].suptitle('feature levels, mean over channels', fontsize=10)
    for cell, (name, level) in zip(
        rows[1].subplots(1, len(tensors.levels)), tensors.levels.items(), strict=True
    ):
        cell.imshow(enlarged(level.mean(0), pixels))
        channels, height, width = level.shape
        cell.set_title(f'{name}: {channels} channels, {height} x {width}', fontsize=9)
        cell.axis('off')
    if splits:
        text = f'splits of {block_name} with their receptive fields in its input'
        rows[2].suptitle(text, fontsize=10)
        cells = rows[2].subplots(1, len(splits))
        for i, (cell, split) in enumerate(zip(cells, splits, strict=True)):
            cell.imshow(enlarged(split.mean(0), pixels))
            is_last = i == len(splits) - 1
            cell.set_title('passed' if is_last else f'{2 * i + 3} x {2 * i + 3}', fontsize=9)
            cell.axis('off')
    write_file(path, lambda file: figure.savefig(file, format='png', dpi=100), replace=False)


def _short(text: str, length: int = 24) -> str:
    """Return the first of a class's names, cut to a length."""
    first = text.split(',')[0]
    return first if len(first) <= length else f'{first[: length - 1]}…'
