"""Train under libraries that are too heavy for CI, and record the results.

Each trains a model of this package for an epoch on the digits of `benchmarks.trainings`, its
features are compared with timm's, and its code in README.md is run.

    python -m venv consumers && consumers/bin/pip install '.[test]' fastai lightning
    consumers/bin/python -m tests.integration.record_consumers

    python -m venv mm && mm/bin/pip install '.[test]' setuptools \\
        mmpretrain==1.2.0 mmcv-lite==2.2.0 mmengine==0.10.7
    mm/bin/python -m tests.integration.record_consumers

Without `--only`, every library that is installed runs. The entries of the others stay in the file.
`--commit-results` renews consumers.json beside this file.
"""

import argparse
import importlib.util
import json
import platform
import re
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.script import add_out
from benchmarks.trainings.train_digits import NAME, accuracy, digits, to_batch
from timm_res2net.files import require

HERE = Path(__file__).parent
RATE = 2e-3

Train = Callable[[DataLoader, Callable[[nn.Module], None]], float]
"""Trains for an epoch, and calls its second argument on the network before and after. Returns the
largest relative error of its features."""


def fastai(loader: DataLoader, score: Callable[[nn.Module], None]) -> float:
    """`vision_learner`, `fit_one_cycle`."""
    from fastai.vision.all import DataLoaders, vision_learner

    from tests.common import image, randomise, relative_error

    learner = vision_learner(
        DataLoaders(loader, loader), NAME, pretrained=False, normalize=False, n_out=10,
        loss_func=nn.CrossEntropyLoss(),
    )  # fmt: skip
    score(learner.model)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, lr_max=5 * RATE)
    score(learner.model)
    randomise(learner.model)
    model = timm.create_model(NAME, num_classes=0).eval()
    model.load_state_dict(learner.model[0].model.state_dict())
    with torch.no_grad():
        found = learner.model.eval()[0](image())
        return relative_error(found, model.forward_features(image()))


def lightning(loader: DataLoader, score: Callable[[nn.Module], None]) -> float:
    """`Trainer.fit`, and its checkpoint read back into a model of timm."""
    import lightning as L

    from tests.common import image, relative_error

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = timm.create_model(NAME, num_classes=10)

        def training_step(self, batch, _):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    module = Classifier()
    score(module.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1, accelerator='cpu', logger=False, enable_progress_bar=False,
            enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module.train(), loader)
        trainer.save_checkpoint(Path(folder) / 'last.ckpt')
        saved = torch.load(Path(folder) / 'last.ckpt', weights_only=True)['state_dict']
    score(module.model)
    model = timm.create_model(NAME, num_classes=10).eval()
    model.load_state_dict({key.removeprefix('model.'): value for key, value in saved.items()})
    with torch.no_grad():
        return relative_error(module.model(image()), model(image()))


def mmpretrain(loader: DataLoader, score: Callable[[nn.Module], None]) -> float:
    """An `ImageClassifier` on `TIMMBackbone`, and the feature levels of `TIMMBackbone`."""
    from mmpretrain.models import ImageClassifier, TIMMBackbone
    from mmpretrain.structures import DataSample

    from tests.common import image, randomise, relative_error

    classifier = ImageClassifier(
        backbone=dict(type='TIMMBackbone', model_name=NAME),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=192),
    )
    score(classifier)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE)
    for x, y in loader:
        samples = [DataSample().set_gt_label(int(label)) for label in y]
        loss = classifier.train()(x, samples, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    score(classifier)
    kwargs = dict(features_only=True, out_indices=(1, 2, 3, 4))
    backbone = randomise(TIMMBackbone('res2net50_se', **kwargs))
    backbone.eval()  # returns None
    model = timm.create_model('res2net50_se', **kwargs).eval()
    model.load_state_dict(backbone.timm_model.state_dict())
    with torch.no_grad():
        levels = zip(backbone(image()), model(image()), strict=True)
        return max(relative_error(found, expected) for found, expected in levels)


CONSUMERS: dict[str, tuple[Train, tuple[str, ...]]] = {
    'fastai': (fastai, ('fastai',)),
    'lightning': (lightning, ('lightning',)),
    'mmpretrain': (mmpretrain, ('mmpretrain', 'mmengine', 'mmcv-lite')),
}
"""How each library trains, and the packages whose versions are recorded."""


def code_of(name: str) -> str:
    """Return the code of README.md that imports a library."""
    blocks = re.findall(r'^```python\n(.*?)^```', (HERE / 'README.md').read_text(), re.S | re.M)
    return next(b for b in blocks if re.search(rf'^(import|from) {name}\b', b, re.M))


def record(name: str) -> dict:
    """Train under a library, run its code, and return its entry."""
    train_images, images, train_labels, labels = digits()
    model = timm.create_model(NAME)
    held_out = to_batch(model, images)
    data = TensorDataset(to_batch(model, train_images), torch.from_numpy(train_labels).long())
    torch.manual_seed(0)
    train, packages = CONSUMERS[name]
    scores: list[float] = []
    error = train(
        DataLoader(data, 16, shuffle=True, drop_last=True),
        lambda network: scores.append(accuracy(network, held_out, labels)),
    )
    code = code_of(name)
    exec(compile(code, name, 'exec'), {})
    known = ('torch', 'torchvision', 'timm', 'timm_res2net', 'numpy', *packages)
    return {
        'what': train.__doc__,
        'command': f'python -m tests.integration.record_consumers --only {name}',
        'versions': {'python': platform.python_version(), **{p: version(p) for p in known}},
        'relative_error': error,
        'held_out_accuracy': dict(zip(('before', 'after'), scores, strict=True)),
        'code': code,
    }


def main() -> None:
    """Run the libraries asked for, or all that are installed, and write the record."""
    parser = argparse.ArgumentParser(
        prog='python -m tests.integration.record_consumers',
        description=__doc__.partition('\n')[0],
        allow_abbrev=False,
    )
    parser.add_argument('--only', choices=CONSUMERS, action='append', help='may be repeated')
    add_out(parser, 'recorded/consumers.json', HERE / 'consumers.json')
    args = parser.parse_args()
    installed = [name for name in CONSUMERS if importlib.util.find_spec(name)]
    missing = [name for name in args.only or () if name not in installed]
    try:
        require('test', 'sklearn', 'pytest')
        if missing or not installed:
            names = ', '.join(missing or CONSUMERS)
            raise ValueError(
                f'Not installed: {names}. Install what you want to record: pip install fastai '
                'lightning; mmpretrain needs an environment of its own.'
            )
    except ValueError as error:
        parser.exit(1, f'{parser.prog}: {error}\n')
    file: Path = args.out
    file.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in args.only or installed:
        found[name] = record(name)
        print(name, json.dumps(found[name], indent=2))
        file.write_text(json.dumps(dict(sorted(found.items())), indent=2) + '\n')
    print(f'Written to {file}.')


if __name__ == '__main__':
    main()
