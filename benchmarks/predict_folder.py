"""Classify a folder of photographs: `predict` against the plain loop of timm's inference.py.

    python -m benchmarks.predict_folder

The photographs are drawn on the spot, 640 x 480 px as JPEG. In every round each way classifies all
of them, in random order: timm's `create_dataset` and `create_loader` with two workers and the plain
model, and `predict` with the plain and the deployed one. The forward pass of both models alone is
timed in the same rounds. Peak memory is that of fresh processes.
"""

import itertools
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_model_data_config
from torch import nn

from timm_res2net import predict, reparameterize_model
from timm_res2net.export.measure import ratio
from timm_res2net.layers.text import table
from timm_res2net.prediction import walk_images

from .script import Script
from .suite.measure import interleave

DIGITS = 'test_res2net_se'
MODELS = ('res2net50_26w_4s', DIGITS)
BATCH = 16
TIMM, PLAIN, DEPLOYED = "timm's loop", 'predict, plain model', 'predict, deployed model'
FORWARD = {PLAIN: 'forward pass, plain model', DEPLOYED: 'forward pass, deployed model'}
MEMORY = (200, 20_000)
"""Numbers of images whose peak memory is compared."""


def draw(folder: Path, number: int) -> None:
    """Write JPEG files of smooth random colors with noise, as large as photographs of that size.

    Args:
        folder: Folder for the files, which need not exist.
        number: Number of files, the same ones every time.
    """
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(number):
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC))
        noise = generator.integers(-12, 13, pixels.shape)
        image = (pixels + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f'{i:05}.jpg', quality=90)


def timms_loop(model: nn.Module, folder: Path) -> int:
    """Classify a folder as timm's inference.py does, and return the number of images."""
    data = resolve_model_data_config(model)
    loader = create_loader(
        create_dataset('', root=str(folder)), data['input_size'], BATCH, num_workers=2,
        interpolation=data['interpolation'], mean=data['mean'], std=data['std'],
        crop_pct=data['crop_pct'], device=torch.device('cpu'),
    )  # fmt: skip
    number = 0
    with torch.inference_mode():
        for images, _ in loader:
            shares, classes = model(images).softmax(-1).topk(3)
            number += len(shares.tolist() and classes.tolist())
    return number


def our_loop(model: nn.Module, folder: Path, workers: int) -> int:
    """Classify a folder with `predict`, and return the number of images."""
    rows = predict(model, walk_images([folder]), batch_size=BATCH, workers=workers)
    return sum(len(row.top) == 3 for row in rows)


def forward(model: nn.Module, number: int) -> int:
    """Run a model alone on batches in memory, and return the number of images."""
    batch = torch.zeros(BATCH, *resolve_model_data_config(model)['input_size'])
    with torch.inference_mode():
        for _ in range(number // BATCH):
            model(batch)
        model(batch[: number % BATCH]) if number % BATCH else None
    return number


def steps(name: str, folder: Path, number: int, workers: int) -> dict[str, Callable[[], object]]:
    """Return each way to classify the images of a folder."""
    plain: nn.Module = timm.create_model(name, pretrained=name == DIGITS, num_classes=10).eval()
    deployed = reparameterize_model(plain)

    def checked(run: Callable[..., int], *args: Any) -> Callable[[], None]:
        def step() -> None:
            done = run(*args)
            if done != number:
                raise RuntimeError(f'{done} of {number} images were classified')

        return step

    return {
        TIMM: checked(timms_loop, plain, folder),
        PLAIN: checked(our_loop, plain, folder, workers),
        DEPLOYED: checked(our_loop, deployed, folder, workers),
        FORWARD[PLAIN]: checked(forward, plain, number),
        FORWARD[DEPLOYED]: checked(forward, deployed, number),
    }


def peak_memory(folder: Path, workers: int) -> dict[str, float]:
    """Return the peak MB of this process, which classifies a folder, and of its largest worker."""
    for _ in predict(DIGITS, walk_images([folder]), workers=workers):
        pass
    # not ru_maxrss, which begins at that of the process that started this one
    status = Path('/proc/self/status').read_text().split()
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = int(status[status.index('VmHWM:') + 1])
    return {'process': round(own / 1024, 1), 'worker': round(largest / 1024, 1)}


def memory(folder: Path, numbers: tuple[int, ...], workers: int) -> dict[str, dict[str, float]]:
    """Return the peak memory by number of images, each in a process of its own."""
    files = sorted(folder.iterdir())
    peaks = {}
    for number in numbers:
        with tempfile.TemporaryDirectory() as made:
            for i, file in zip(range(number), itertools.cycle(files), strict=False):
                os.symlink(file, f'{made}/{i:06}.jpg')
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                peaks[str(number)] = pool.submit(peak_memory, Path(made), workers).result()
    return peaks


def report_tables(cells: dict[str, Any]) -> str:
    """Return the results as tables."""
    rows = [
        (name, way, f'{cells[name]["rates"][way]:.1f}', f'× {time[0]:.2f}')
        for name in MODELS
        if name in cells
        for way, time in cells[name]['ratios'].items()
    ]
    text = table(('model', 'way', 'images a second', "time over timm's loop"), rows)
    for number, peak in cells['memory'].items():
        text += f'\n{int(number):,} images: {peak["process"]} MB, a worker {peak["worker"]} MB'
    return text


def sentence(report: dict[str, Any]) -> str:
    """Return the main figures in one sentence."""
    cell, (few, many) = report[MODELS[0]], report['memory'].values()
    plain, deployed = (cell['ratios'][way][0] for way in (PLAIN, DEPLOYED))
    return (
        f"`predict` takes × {plain:.2f} of the time of timm's loop to classify {cell['images']:,} "
        f'JPEGs with {MODELS[0]}, and × {deployed:.2f} with the deployed model, which is '
        f'{cell["gain"][0] / cell["forward_gain"][0]:.2f} of the gain of the forward pass alone. '
        f'For 20,000 images it takes × {many["process"] / few["process"]:.2f} of the memory for '
        f'200, and a worker × {many["worker"] / few["worker"]:.2f}.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('predict_folder', __doc__)
    add = script.parser.add_argument
    add('--images', type=int, default=2000, help='photographs (default: %(default)s)')
    add('--rounds', type=int, default=3, help='rounds over all of them (default: %(default)s)')
    add('--only', choices=MODELS, help='one of the networks')
    add('--workers', type=int, help="of predict (default: the command's)")
    add('--memory', type=int, nargs='+', default=MEMORY, help='images (default: 200 20000)')
    args = script.parse(argv)
    workers = torch.get_num_threads() - 1 if args.workers is None else args.workers
    cells: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, 'photos', 'all')
        draw(folder, args.images)
        for name in MODELS if args.only is None else (args.only,):
            ways = steps(name, folder.parent, args.images, workers)
            samples = interleave(ways, budget=0, least_rounds=args.rounds, warmup=0)
            cells[name] = {
                'images': args.images,
                'workers': workers,
                'rates': {w: args.images / float(np.median(s)) for w, s in samples.items()},
                'ratios': {w: list(ratio(s, samples[TIMM])) for w, s in samples.items()},
                'gain': list(ratio(samples[PLAIN], samples[DEPLOYED])),
                'forward_gain': list(ratio(samples[FORWARD[PLAIN]], samples[FORWARD[DEPLOYED]])),
                'samples': samples,
            }
        cells['memory'] = memory(folder, tuple(args.memory), workers)
    print(report_tables(cells))
    script.save(cells)


if __name__ == '__main__':
    main()
