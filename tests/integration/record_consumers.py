"""Run the consumers that are too heavy for CI, and record what came out: consumers.json.

Each trains one of our models for an epoch on scikit-learn's digits (64 px, the last 360 held out)
with what is its own, and its features are compared with timm's.

    python -m venv consumers && consumers/bin/pip install '.[test]' fastai lightning
    consumers/bin/python -m tests.integration.record_consumers

    python -m venv mm && mm/bin/pip install '.[test]' setuptools \\
        mmpretrain==1.2.0 mmcv-lite==2.2.0 mmengine==0.10.7
    mm/bin/python -m tests.integration.record_consumers --only mmpretrain

MMPretrain wants an environment of its own, without transformers, which it cannot read any more.
Entries of consumers that were not run stay as they are.
"""

import argparse
import importlib.util
import json
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import timm_res2net
from tests.common import image, randomise, relative_error

NAME = 'test_res2net_se'
HELD_OUT = 360
BATCH, RATE = 16, 2e-3
FILE = Path(__file__).with_name('consumers.json')

# What a user writes: shown by --help, run after the training
LINES = {
    'fastai': """
import timm_res2net  # registers the names
import numpy as np
from fastai.vision.all import *

colours = {'red': (200, 40, 40), 'green': (40, 200, 40), 'blue': (40, 40, 200)}
block = DataBlock(
    (ImageBlock, CategoryBlock),
    get_x=lambda name: PILImage.create(np.full((64, 64, 3), colours[name], np.uint8)),
    get_y=lambda name: name,
)
loaders = block.dataloaders(list(colours) * 20, bs=12, num_workers=0)
learner = vision_learner(loaders, 'test_res2net_se', metrics=accuracy)  # pretrained
learner.fine_tune(1)
""",
    'lightning': """
import lightning, timm, timm_res2net, torch  # the third registers the names

class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = timm.create_model('test_res2net_se', pretrained=True, num_classes=3)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

data = torch.utils.data.TensorDataset(torch.randn(32, 3, 64, 64), torch.randint(3, (32,)))
trainer = lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
trainer.fit(Classifier(), torch.utils.data.DataLoader(data, 8))
""",
    'mmpretrain': """
import timm_res2net  # registers the names
import torch
from mmpretrain.models import ImageClassifier

model = ImageClassifier(
    backbone=dict(type='TIMMBackbone', model_name='test_res2net_se', pretrained=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=192),
)
print(model(torch.randn(2, 3, 64, 64)).shape)  # (2, 3)
""",
}


def digits() -> tuple[TensorDataset, TensorDataset]:
    """The digits as (3, 64, 64) images in -1 ... 1, to learn from and held out (other writers)."""
    data = load_digits()
    x = torch.from_numpy(np.asarray(data.images)).float()[:, None] / 8 - 1
    x = F.interpolate(x, size=64, mode='bilinear').expand(-1, 3, -1, -1).contiguous()
    y = torch.from_numpy(np.asarray(data.target)).long()
    return TensorDataset(x[:-HELD_OUT], y[:-HELD_OUT]), TensorDataset(x[-HELD_OUT:], y[-HELD_OUT:])


@torch.no_grad()
def score(
    model: Callable[[torch.Tensor], torch.Tensor], data: TensorDataset
) -> tuple[float, float]:
    """Cross-entropy and share of right answers."""
    x, y = data.tensors
    logits = torch.cat([model(part) for part in x.split(120)])
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).double().mean())


def parity(found, expected) -> float:
    """Largest relative error over levels."""
    return max(relative_error(one, other) for one, other in zip(found, expected, strict=True))


def result(name: str, what: str, error: float, before, after, libraries: list[str]) -> dict:
    """An entry of the record."""
    known = ['torch', 'torchvision', 'timm', 'numpy', *libraries]
    return {
        'what': what,
        'command': f'python -m tests.integration.record_consumers --only {name}',
        'versions': {
            'python': platform.python_version(),
            'timm_res2net': timm_res2net.__version__,
            **{library: version(library) for library in known},
        },
        'parity': error,
        'held_out_loss': {'before': before[0], 'after': after[0]},
        'held_out_accuracy': {'before': before[1], 'after': after[1]},
    }


def fastai() -> dict:
    """vision_learner by timm's name, fit_one_cycle for one epoch."""
    from fastai.vision.all import DataLoaders, accuracy, vision_learner

    train, held_out = digits()
    loaders = DataLoaders(
        DataLoader(train, BATCH, shuffle=True, drop_last=True), DataLoader(held_out, 120)
    )
    learner = vision_learner(
        loaders, NAME, pretrained=False, normalize=False, n_out=10, metrics=accuracy,
        loss_func=nn.CrossEntropyLoss(),
    )  # fmt: skip
    before = score(learner.model.eval(), held_out)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, lr_max=5 * RATE)
    after = score(learner.model.eval(), held_out)
    # what fastai cut off and wrapped is still our network
    model = timm.create_model(NAME, num_classes=0).eval()
    randomise(learner.model)
    model.load_state_dict(learner.model[0].model.state_dict())
    x = image()
    with torch.no_grad():
        error = parity([learner.model.eval()[0](x)], [model.forward_features(x)])
    what = f"vision_learner(loaders, '{NAME}', pretrained=False), fit_one_cycle(1) on digits"
    return result('fastai', what, error, before, after, ['fastai'])


def lightning() -> dict:
    """Trainer.fit for one epoch; the checkpoint it wrote is read back into a model of timm's."""
    import lightning as L

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = timm.create_model(NAME, num_classes=10)

        def training_step(self, batch, _):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    train, held_out = digits()
    module = Classifier()
    before = score(module.model.eval(), held_out)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1, accelerator='cpu', logger=False, enable_progress_bar=False,
            enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module.train(), DataLoader(train, BATCH, shuffle=True, drop_last=True))
        trainer.save_checkpoint(Path(folder) / 'last.ckpt')
        saved = torch.load(Path(folder) / 'last.ckpt', weights_only=True)['state_dict']
    after = score(module.model.eval(), held_out)
    model = timm.create_model(NAME, num_classes=10).eval()
    model.load_state_dict({key.removeprefix('model.'): value for key, value in saved.items()})
    x = image()
    with torch.no_grad():
        error = parity([module.model(x)], [model(x)])
    what = f"Trainer(max_epochs=1).fit of create_model('{NAME}') on digits, its checkpoint read"
    return result('lightning', what, error, before, after, ['lightning'])


def mmpretrain() -> dict:
    """TIMMBackbone: its features, and an ImageClassifier above it trained for one epoch."""
    from mmpretrain.models import ImageClassifier, TIMMBackbone
    from mmpretrain.structures import DataSample

    kwargs = dict(features_only=True, out_indices=(1, 2, 3, 4))
    backbone = randomise(TIMMBackbone('res2net50_se', **kwargs))
    backbone.eval()  # answers None
    model = timm.create_model('res2net50_se', **kwargs).eval()
    model.load_state_dict(backbone.timm_model.state_dict())
    x = image()
    with torch.no_grad():
        error = parity(backbone(x), model(x))

    train, held_out = digits()
    classifier = ImageClassifier(
        backbone=dict(type='TIMMBackbone', model_name=NAME),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=192),
    )
    before = score(classifier.eval(), held_out)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE)
    for x, y in DataLoader(train, BATCH, shuffle=True, drop_last=True):
        samples = [DataSample().set_gt_label(int(label)) for label in y]
        loss = classifier.train()(x, samples, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = score(classifier.eval(), held_out)
    what = (
        f"TIMMBackbone('res2net50_se', features_only=True) against timm's features at 64 px; "
        f"ImageClassifier of TIMMBackbone('{NAME}') and LinearClsHead, one epoch on digits"
    )
    return result('mmpretrain', what, error, before, after, ['mmpretrain', 'mmengine', 'mmcv-lite'])


CONSUMERS: dict[str, Callable[[], dict]] = {
    'fastai': fastai,
    'lightning': lightning,
    'mmpretrain': mmpretrain,
}


def main(args: list[str] | None = None) -> None:
    """Run the consumers asked for, or all that are installed, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0],
        epilog='\n'.join(f'{name}:\n{code}' for name, code in LINES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--only', choices=CONSUMERS, action='append', help='may be repeated')
    parser.add_argument('--out', type=Path, default=FILE)
    asked = parser.parse_args(args)
    installed = [name for name in CONSUMERS if importlib.util.find_spec(name)]
    if missing := [name for name in asked.only or [] if name not in installed]:
        parser.error(f'{", ".join(missing)} cannot be imported here: pip install it first.')
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for name in asked.only or installed:
        torch.manual_seed(0)
        found[name] = CONSUMERS[name]()
        if name in LINES:
            exec(compile(LINES[name], name, 'exec'), {})
            found[name]['lines'] = 'ran'
        print(name, json.dumps(found[name], indent=2))
        asked.out.write_text(json.dumps(dict(sorted(found.items())), indent=2) + '\n')


if __name__ == '__main__':
    main()
