"""`demo`: the embedded model at work, offline."""

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from ..files import write_file
from ..show import DIGITS, check_picture
from .frame import Verbs

_NAME = 'test_res2net_se'


def _demo(args: argparse.Namespace) -> int:
    if args.out is not None:
        check_picture(args.out)
    model = timm.create_model(_NAME, pretrained=True).eval()
    strip = Image.open(DIGITS)
    size = strip.height
    images = [strip.crop((x, 0, x + size, size)) for x in range(0, strip.width, size)]
    labels = [i % 10 for i in range(len(images))]
    transform: Any = create_transform(**resolve_data_config({}, model=model))
    x = torch.stack([transform(image.convert('RGB')) for image in images])
    with torch.inference_mode():
        confidence, predicted = model(x).softmax(1).max(1)
    print(f'{_NAME}, {sum(p.numel() for p in model.parameters()):,} parameters, offline')
    print('label         ' + ' '.join(f'{label:3d}' for label in labels))
    print('predicted     ' + ' '.join(f'{int(p):3d}' for p in predicted))
    print('confidence, % ' + ' '.join(f'{100 * float(c):3.0f}' for c in confidence))
    right = sum(int(p) == label for p, label in zip(predicted, labels, strict=True))
    print(f'{right} of {len(labels)} right')

    neck: Any = timm.create_model(_NAME, pretrained=True, features_only=True).eval()
    with torch.inference_mode():
        features = neck(x[:1])
    print(f'features_only=True on an image of {tuple(x[:1].shape)}:')
    for name, stride, feature in zip(
        neck.feature_info.module_name(), neck.feature_info.reduction(), features, strict=True
    ):
        print(f'  {name:<7} stride {stride:2d}  {tuple(feature.shape)}')

    if args.out is not None:
        _draw(args.out, images, labels, predicted.tolist(), [f[0].mean(0) for f in features])
        print(f'Picture written to {args.out}')
    return 0


def _draw(
    out: Path, images: list[Any], labels: list[int], predicted: list[int], maps: list[Any]
) -> None:
    """Draw the predictions above the first image's feature maps, each the mean over channels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout='constrained')
    subfigures: Any = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    above, below = subfigures
    above.suptitle('test_res2net_se on held-out digits: predicted (label)')
    cells = above.subplots(2, len(images) // 2).flat
    for cell, image, label, guess in zip(cells, images, labels, predicted, strict=True):
        cell.imshow(image, cmap='gray')
        cell.set_title(f'{guess} ({label})', fontsize=9, color='k' if guess == label else 'r')
        cell.axis('off')
    below.suptitle('feature levels of the first image, mean over channels')
    for i, (cell, feature) in enumerate(zip(below.subplots(1, len(maps)), maps, strict=True)):
        height, width = feature.shape
        cell.imshow(feature.numpy())
        cell.set_title(f'stride {2 << i}: {height} x {width}', fontsize=9)
        cell.axis('off')
    write_file(out, lambda file: figure.savefig(file, format='png', dpi=110), replace=False)


def add(verbs: Verbs) -> None:
    """Add the verb `demo`."""
    parser = verbs.add(
        'demo',
        _demo,
        'classify the bundled digits and show the feature levels, offline',
        'timm-res2net demo',
        'timm-res2net demo --out demo.png',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='PNG',
        help='picture to write (needs matplotlib); it must not exist',
    )
