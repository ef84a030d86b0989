"""Scripts through `timm-res2net run`: timm's, and one on two processes.

timm's wheel has no scripts: those below go their way in few words, with timm's own functions for
models, data, optimizers, processes and checkpoints. train.json records the real train.py, and what
it saves is compared with what the one below saves.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import timm_res2net
from tests.common import image, randomise, relative_error
from tests.integration import record_train
from timm_res2net import convert_checkpoint
from timm_res2net.folder.config import DATA
from timm_res2net.layers.bottle2neck import Bottle2neck
from timm_res2net.layers.semantics import SEMANTICS

DIGITS = Path(timm_res2net.__file__).parent / 'weights' / 'digits.png'
TORCHRUN = (
    sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
    '-m', 'timm_res2net', 'run',
)  # fmt: skip
ALONE = (sys.executable, '-m', 'timm_res2net', 'run')

SHARED = """
import sys

def each(main):
    'Run main for every list of arguments on the command line; a plus stands between them.'
    several = [[]]
    for word in sys.argv[1:]:
        if word == '+':
            several.append([])
        else:
            several[-1].append(word)
    for words in several:
        main(words)
"""

TRAIN = """
import argparse
import timm, torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ParseKwargs, get_outdir, random_seed
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument('data')
parser.add_argument('--model')
parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs)
parser.add_argument('--num-classes', type=int)
parser.add_argument('--batch-size', type=int)
parser.add_argument('--epochs', type=int, default=2)
parser.add_argument('--output')

args = parser.parse_args()
random_seed(0)
model = timm.create_model(
    args.model, pretrained=True, num_classes=args.num_classes, **args.model_kwargs
).train()
config = resolve_data_config({}, model=model)
loader = create_loader(
    create_dataset('', root=args.data), config['input_size'], args.batch_size,
    use_prefetcher=False, interpolation=config['interpolation'], mean=config['mean'],
    std=config['std'], crop_pct=config['crop_pct'], num_workers=0, device=torch.device('cpu'),
)
optimizer = create_optimizer_v2(model, opt='sgd', lr=0.01, momentum=0.9, weight_decay=1e-3)
for epoch in range(args.epochs):
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
saver = CheckpointSaver(model, optimizer, args=args, checkpoint_dir=get_outdir(args.output))
saver.save_checkpoint(args.epochs - 1, metric=1.0)
"""

VALIDATE = """
import argparse, json
import timm, torch
from shared import each
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import load_checkpoint
from timm.utils import AverageMeter, accuracy, reparameterize_model

parser = argparse.ArgumentParser()
parser.add_argument('--data-dir')
parser.add_argument('--model')
parser.add_argument('--pretrained', action='store_true')
parser.add_argument('--num-classes', type=int)
parser.add_argument('--checkpoint', default='')
parser.add_argument('--reparam', action='store_true')

def main(words):
    args = parser.parse_args(words)
    model = timm.create_model(
        args.model, pretrained=args.pretrained, num_classes=args.num_classes, exportable=True
    )
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint)
    config = resolve_data_config(vars(args), model=model, use_test_size=True)
    if args.reparam:
        model = reparameterize_model(model)
    loader = create_loader(
        create_dataset('', root=args.data_dir), config['input_size'], 8, use_prefetcher=False,
        interpolation=config['interpolation'], mean=config['mean'], std=config['std'],
        crop_pct=config['crop_pct'], num_workers=0,
        device=torch.device('cpu'),
    )
    top1, top5 = AverageMeter(), AverageMeter()
    model.eval()
    with torch.inference_mode():
        for x, y in loader:
            one, five = accuracy(model(x), y, topk=(1, 5))
            top1.update(one.item(), len(x))
            top5.update(five.item(), len(x))
    print(json.dumps({'top1': top1.avg, 'top5': top5.avg, 'count': top1.count}))

each(main)
"""

INFERENCE = """
import argparse, json
import timm, torch
from timm.data import create_dataset, create_loader, resolve_data_config

parser = argparse.ArgumentParser()
parser.add_argument('--data-dir')
parser.add_argument('--model')
parser.add_argument('--topk', type=int)
parser.add_argument('--results-file')
args = parser.parse_args()
model = timm.create_model(args.model, pretrained=True).eval()
config = resolve_data_config(vars(args), model=model)
loader = create_loader(
    create_dataset('', root=args.data_dir), batch_size=8, use_prefetcher=False, num_workers=0,
    device=torch.device('cpu'), **config,
)
rows = []
with torch.inference_mode():
    for x, _ in loader:
        top = model(x).softmax(1).topk(args.topk)
        rows += zip(top.indices.tolist(), top.values.tolist())
names = loader.dataset.filenames(basename=True)
with open(args.results_file, 'w') as file:
    json.dump({name: row for name, row in zip(names, rows, strict=True)}, file)
"""

BENCHMARK = """
import argparse, json, time
import timm, torch
from shared import each
from timm.utils import reparameterize_model

parser = argparse.ArgumentParser()
parser.add_argument('--model')
parser.add_argument('--batch-size', type=int)
parser.add_argument('--num-bench-iter', type=int)
parser.add_argument('--reparam', action='store_true')
parser.add_argument('--torchscript', action='store_true')

def main(words):
    args = parser.parse_args(words)
    model = timm.create_model(
        args.model, num_classes=None, in_chans=3, scriptable=args.torchscript, exportable=True
    ).eval()
    params = sum(p.numel() for p in model.parameters())
    if args.reparam:
        model = reparameterize_model(model)
    if args.torchscript:
        model = torch.jit.script(model)
    x = torch.randn(args.batch_size, 3, 64, 64)
    with torch.inference_mode():
        started = time.perf_counter()
        for _ in range(args.num_bench_iter):
            output = model(x)
        seconds = time.perf_counter() - started
    rate = args.batch_size * args.num_bench_iter / seconds
    print(json.dumps({'samples_per_sec': rate, 'params': params, 'shape': list(output.shape)}))

each(main)
"""


@pytest.fixture(scope='module')
def scripts(tmp_path_factory):
    """A folder of scripts, and one of images in folders by class."""
    folder = tmp_path_factory.mktemp('scripts')
    for name, text in {
        'shared': SHARED, 'train': TRAIN, 'validate': VALIDATE, 'inference': INFERENCE,
        'benchmark': BENCHMARK,
    }.items():  # fmt: skip
        (folder / f'{name}.py').write_text(text)
    strip = Image.open(DIGITS).convert('RGB')
    size = strip.height
    for i in range(strip.width // size):
        path = folder / 'data' / str(i % 10) / f'{i:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        strip.crop((i * size, 0, (i + 1) * size, size)).save(path)
    return folder


def start(program, script, *words) -> subprocess.CompletedProcess:
    """Start a script and wait for its end."""
    ours = {'PYTHONPATH': str(Path(__file__).parents[2]), 'OMP_NUM_THREADS': '1'}
    if earlier := os.environ.get('PYTHONPATH'):
        ours['PYTHONPATH'] += os.pathsep + earlier
    done = subprocess.run(
        [*program, script, *words], env={**os.environ, **ours}, capture_output=True, text=True,
        timeout=300, cwd=script.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def run(script, runs) -> list:
    """Start one of timm's scripts with several lists of arguments; the JSON of its lines."""
    words = [word for i, one in enumerate(runs) for word in ('+ ' * (i > 0) + one).split()]
    done = start(ALONE, script.with_suffix('.py'), *words)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]


# --- what the real train.py saves ---------------------------------------------------------------

RECORD = json.loads((Path(__file__).parent / 'train.json').read_text())


def test_the_record():
    """The real script trained, and what it saved went the whole way."""
    assert RECORD['versions']['timm'].startswith('1.')
    found = RECORD['training']
    assert f'-m timm_res2net run {record_train.SCRIPT}' in found['command']
    assert '--device cpu' in found['command']
    assert found['top1'][-1] > 90 > found['top1'][0] - 1e-9
    assert found['converted']['entry'] == 'state_dict'
    assert found['converted']['architecture'] == record_train.NAME
    assert found['converted']['num_classes'] == len(RECORD['classes'])
    assert found['check'] == ['ok']
    predicted = found['predicted']
    assert {path.split('/')[0]: label for path, label in predicted.items()} == {
        name: name for name in RECORD['classes']
    }


def test_what_is_read_of_the_arguments_is_what_the_real_script_names():
    known = RECORD['arguments']
    assert {'model', 'model_kwargs', 'gp', *DATA} <= known.keys()
    assert known['model_kwargs'] == 'dict'
    asked = {n.replace('-', '_') for n in re.findall(r"add_argument\('-*([\w-]+)'", TRAIN)}
    assert asked <= known.keys()


@pytest.fixture(scope='module')
def trained(scripts):
    """A checkpoint of the script above."""
    run(scripts / 'train', [
        'data --model test_res2net_se --num-classes 12 --batch-size 8 --output saved'
    ])  # fmt: skip
    return scripts / 'saved' / 'model_best.pth.tar'


@pytest.mark.slow
def test_the_script_above_saves_what_the_real_one_saves(trained):
    saved = torch.load(trained, weights_only=False)
    assert {key: type(value).__name__ for key, value in saved.items()} == RECORD['entries']
    for name, value in vars(saved['args']).items():
        assert type(value).__name__ == RECORD['arguments'][name], name
    found = convert_checkpoint(trained)
    expected = RECORD['training']['converted']
    assert found.notes.entry == expected['entry']
    assert found.config.architecture == expected['architecture']
    assert len(found.notes.moved) == expected['tensors']


# --- two processes ------------------------------------------------------------------------------

# float64, three steps on sums of a few hundred terms, each off by 1e-16
TOLERANCE = 1e-12

STEPS = """
import torch
from torch import nn

def train(model, images, labels):
    'Three steps with frozen statistics, so that the halves of a batch make the whole.'
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.eval()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
"""

PARALLEL = (
    STEPS
    + """
import sys
import timm
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

distributed.init_process_group('gloo')
rank = distributed.get_rank()
torch.manual_seed(rank)  # another head on each rank, until DDP hands out the first one's
model = timm.create_model('test_res2net_se', pretrained=True, num_classes=5).double()
start = {key: value.clone() for key, value in model.state_dict().items()}
images, labels = torch.load(sys.argv[1])
wrapped = DistributedDataParallel(model)
train(wrapped, images[rank::2], labels[rank::2])
torch.save((start, model.state_dict()), sys.argv[1] + f'.{rank}')
distributed.destroy_process_group()
"""
)


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    """Through `run`, which says once what timm's own script would do without a GPU."""
    script, batch = tmp_path / 'parallel.py', tmp_path / 'batch'
    script.write_text(PARALLEL)
    images, labels = image(8).double(), torch.arange(8) % 5
    torch.save((images, labels), batch)
    done = start(TORCHRUN, script, str(batch))
    told = "without a GPU, timm's train.py fails with several processes"
    assert done.stderr.count(told) == (not torch.accelerator.is_available())
    (first, one), (second, other) = (torch.load(f'{batch}.{rank}') for rank in (0, 1))
    assert not torch.equal(first['fc.weight'], second['fc.weight'])
    assert all(torch.equal(one[key], value) for key, value in other.items())

    model = timm.create_model('test_res2net_se', num_classes=5).double()
    model.load_state_dict(first)
    exec(STEPS, scope := {})
    scope['train'](model, images, labels)
    assert relative_error(one['fc.weight'], first['fc.weight']) > 1e-4  # it has learnt
    for key, expected in model.state_dict().items():
        assert relative_error(one[key].double(), expected.double()) < TOLERANCE, key


# --- SyncBatchNorm ------------------------------------------------------------------------------

CONVERTERS = {
    'torch': nn.SyncBatchNorm.convert_sync_batchnorm,
    'timm': timm.layers.convert_sync_batchnorm,
}


@pytest.mark.parametrize('converter', CONVERTERS)
@pytest.mark.parametrize('semantics', SEMANTICS)
def test_conversion_keeps_the_block(converter, semantics):
    """Another norm layer and nothing else: without other processes it computes what it did."""
    plain, model = (
        randomise(timm.create_model('test_res2net_se', semantics=semantics)).double()
        for _ in range(2)
    )
    converted = CONVERTERS[converter](model)
    assert list(converted.state_dict()) == list(plain.state_dict())
    changed = 0
    for (name, before), (other, after) in zip(
        plain.named_modules(), converted.named_modules(), strict=True
    ):
        assert name == other
        norm = type(before) is nn.BatchNorm2d
        assert type(after) is (nn.SyncBatchNorm if norm else type(before)), name
        changed += norm
    blocks = [module for module in converted.modules() if isinstance(module, Bottle2neck)]
    # bn1, three bns and bn3 a block, and of the first of each stage one more in its shortcut
    assert changed == 1 + 5 * len(blocks) + 4
    x = image(4).double()
    for mode in (False, True):
        outs = [net.train(mode)(x) for net in (plain, converted)]
        assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    for p, q in zip(plain.parameters(), converted.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for p, q in zip(plain.buffers(), converted.buffers(), strict=True):
        assert torch.equal(p, q)


# --- the other scripts --------------------------------------------------------------------------


@pytest.mark.slow
def test_validate(scripts, trained, tmp_path):
    """Pretrained weights, their deploy form, and a checkpoint of the training above."""
    weights = torch.load(trained, weights_only=False)['state_dict']
    torch.save({'arch': 'test_res2net_se', 'state_dict': weights}, tmp_path / 'last.pth.tar')
    model = '--data-dir data --model test_res2net_se'
    plain, deployed, trained_on = run(
        scripts / 'validate', [
            f'{model} --pretrained',
            f'{model} --pretrained --reparam',
            f'{model} --num-classes 12 --checkpoint {tmp_path}/last.pth.tar',
        ],
    )  # fmt: skip
    # the bundled digits, held out from training: 20 of 20, as `timm-res2net predict` says
    assert plain == deployed == {'top1': 100.0, 'top5': 100.0, 'count': 20}
    fresh = timm.create_model('test_res2net_se', num_classes=12).eval()
    fresh.load_state_dict(weights)
    pixels = torch.stack([prepared(path) for path in sorted(scripts.glob('data/*/*.png'))])
    labels = torch.arange(10).repeat_interleave(2)
    with torch.inference_mode():
        right = (fresh(pixels).argmax(1) == labels).float().mean()
    assert trained_on['top1'] == pytest.approx(100 * float(right))
    assert trained_on['count'] == 20


def prepared(path: Path) -> torch.Tensor:
    """An image as timm prepares it for the model in the package."""
    config = timm.data.resolve_data_config({}, model=timm.create_model('test_res2net_se'))
    return timm.data.create_transform(**config)(Image.open(path).convert('RGB'))


def test_inference(scripts, tmp_path):
    file = tmp_path / 'results.json'
    run(scripts / 'inference', [
        f'--data-dir data --model test_res2net_se --topk 3 --results-file {file}'
    ])  # fmt: skip
    rows = json.loads(file.read_text())
    assert sorted(rows) == [f'{i:02d}.png' for i in range(20)]
    for name, (classes, shares) in rows.items():
        assert classes[0] == int(name[:2]) % 10
        assert len(set(classes)) == 3
        assert 1 >= shares[0] >= shares[1] >= shares[2] > 0


@pytest.mark.slow
def test_benchmark(scripts):
    options = '--model test_res2net_se --batch-size 2 --num-bench-iter 2'
    rows = run(scripts / 'benchmark', [
        options, f'{options} --reparam', f'{options} --torchscript'
    ])  # fmt: skip
    for row in rows:
        assert row['params'] == 209_693  # of the package's table
        assert row['shape'] == [2, 10]
        assert row['samples_per_sec'] > 0  # no claim: it ran
