"""timm's scripts through `timm-res2net run`, on one process and on two.

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
from safetensors.torch import save
from torch import nn

import timm_res2net
from tests.common import image, randomise, relative_error
from tests.hub import test_push
from tests.hub.client import environment
from tests.hub.server import hub
from tests.integration import record_train
from timm_res2net import convert_checkpoint, push_to_hub
from timm_res2net.folder import DATA
from timm_res2net.layers.bottle2neck import Bottle2neck
from timm_res2net.semantics import SEMANTICS

DIGITS = Path(timm_res2net.__file__).parent / 'weights' / 'digits.png'
TORCHRUN = (
    sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
    '-m', 'timm_res2net', 'run',
)  # fmt: skip
ALONE = (sys.executable, '-m', 'timm_res2net', 'run')

# float64, six steps on a few hundred sums of 1e-16 each; 4e-16 measured
TOLERANCE = 1e-12

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
from shared import each
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.utils import (
    CheckpointSaver, ParseKwargs, distribute_bn, get_outdir, init_distributed_device, random_seed,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument('data')
parser.add_argument('--model')
parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs)
parser.add_argument('--num-classes', type=int)
parser.add_argument('--batch-size', type=int)
parser.add_argument('--epochs', type=int, default=2)
parser.add_argument('--freeze-norms', action='store_true')
parser.add_argument('--sync-bn', action='store_true')
parser.add_argument('--output')
here = argparse.Namespace(device='cpu')
device = init_distributed_device(here)

def train_mode(model, freeze_norms):
    model.train()
    for module in model.modules():
        if freeze_norms and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()

def main(words):
    args = parser.parse_args(words)
    random_seed(0, here.rank)  # another head on each rank, until DDP hands out the first one's
    if here.distributed:
        torch.distributed.barrier()  # so that they ask the Hub at once
    model = timm.create_model(
        args.model, pretrained=True, num_classes=args.num_classes, **args.model_kwargs
    )
    head = model.fc.weight.detach().clone()
    model = model.double()
    config = resolve_data_config({}, model=model)
    if args.sync_bn:
        model = convert_sync_batchnorm(model)
    bare = model
    told = {'world': here.world_size, 'norm': type(bare.layer1[0].bn1).__name__}
    if here.distributed:
        try:
            model = DistributedDataParallel(model, device_ids=[device])  # as timm's
        except ValueError as error:
            torch.save([{**told, 'error': str(error)}, {}, head], f'{args.output}-{here.rank}')
            return
    # timm 1.0.22 hands persistent_workers on, which torch refuses without workers
    loader = create_loader(
        create_dataset('', root=args.data), config['input_size'], args.batch_size,
        use_prefetcher=False, interpolation=config['interpolation'], mean=config['mean'],
        std=config['std'], crop_pct=config['crop_pct'], num_workers=0, persistent_workers=False,
        distributed=here.distributed, device=device,
    )
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.01, momentum=0.9, weight_decay=1e-3)
    losses, seen = [], []
    for epoch in range(args.epochs):
        train_mode(model, args.freeze_norms)
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x.double()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen.append(y.tolist())
    mean = bare.layer4[0].bn3.running_mean.clone()  # before it is averaged
    if here.distributed:
        distribute_bn(model, here.world_size, True)
    told |= {'losses': losses, 'seen': seen, 'mean': mean}
    torch.save([told, bare.state_dict(), head], f'{args.output}-{here.rank}')
    if here.rank == 0:
        saver = CheckpointSaver(
            model, optimizer, args=args, checkpoint_dir=get_outdir(f'{args.output}.saved')
        )
        saver.save_checkpoint(args.epochs - 1, metric=1.0)

each(main)
if here.distributed:
    torch.distributed.destroy_process_group()
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
        crop_pct=config['crop_pct'], num_workers=0, persistent_workers=False,
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
    persistent_workers=False, device=torch.device('cpu'), **config,
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


def run(start, script, runs, env=None) -> list:
    """Start a script with several lists of arguments; the JSON of its lines."""
    words = [word for i, one in enumerate(runs) for word in ('+ ' * (i > 0) + one).split()]
    ours = {'PYTHONPATH': str(Path(__file__).parents[2]), 'OMP_NUM_THREADS': '1'}
    if earlier := os.environ.get('PYTHONPATH'):
        ours['PYTHONPATH'] += os.pathsep + earlier
    done = subprocess.run(
        [*start, f'{script}.py', *words], env=env or {**os.environ, **ours}, capture_output=True,
        text=True, timeout=300, cwd=script.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]


# --- what the real train.py saves ---------------------------------------------------------------

RECORD = json.loads((Path(__file__).parent / 'train.json').read_text())


def test_the_record():
    """The real script trained on one process and on two, and what it saved went the whole way."""
    assert RECORD['versions']['timm'].startswith('1.')
    for name in ('one process', 'two processes'):
        found = RECORD['training'][name]
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
    for text in (TRAIN, test_push.TRAIN):
        asked = {n.replace('-', '_') for n in re.findall(r"add_argument\('-*([\w-]+)'", text)}
        assert asked - {'freeze_norms'} <= known.keys()


@pytest.mark.slow
def test_the_script_above_saves_what_the_real_one_saves(trained):
    left, _ = trained
    saved = torch.load(left['saved'], weights_only=False)
    kinds = {key: type(value).__name__ for key, value in saved.items()}
    assert {**kinds, 'saver': 'dict'} == RECORD['entries']  # timm 1.0.22 has no saver in it
    for name, value in vars(saved['args']).items():
        assert name == 'freeze_norms' or type(value).__name__ == RECORD['arguments'][name], name
    found = convert_checkpoint(left['saved'])
    expected = RECORD['training']['one process']['converted']
    assert found.file.entry == expected['entry']
    assert found.architecture == expected['architecture']
    assert len(found.moves) == expected['tensors']


# --- two processes ------------------------------------------------------------------------------

RUNS = {
    'plain': '--freeze-norms',
    'norms': '',
    'sync': '--sync-bn',
}


@pytest.fixture(scope='module')
def trained(scripts, tmp_path_factory):
    """What every run left, by its name and number of processes, and what the Hub was asked for.

    The two processes begin with a cold cache, the single one goes on from theirs without a network.
    """
    folder = tmp_path_factory.mktemp('trained')
    model = timm.create_model('test_res2net_se', pretrained=True)
    pushed = push_to_hub(model, 'me/net', license='apache-2.0', dry_run=True)

    def lines(processes, names):
        return [
            f'data --model hf-hub:me/net --num-classes 12 --batch-size {8 // processes} '
            f'--output {folder}/{name.replace(" ", "_")}-{processes} {RUNS[name]}'
            for name in names
        ]

    with hub() as server:
        server.add('me/net', {
            'config.json': pushed.config.to_json().encode(),
            'model.safetensors': save(model.state_dict()),
        })  # fmt: skip
        env = environment(server.url, folder / 'home', HF_HUB_DISABLE_XET='1')
        run(TORCHRUN, scripts / 'train', lines(2, RUNS), env)
        requests = list(server.requests)
    env['HF_HUB_OFFLINE'] = '1'
    run(ALONE, scripts / 'train', lines(1, ['plain', 'norms']), env)
    left = {}
    for path in folder.glob('*-*-*'):
        name, processes, rank = path.name.split('-')
        left[name.replace('_', ' '), int(processes), int(rank)] = torch.load(path)
    left['saved'] = folder / 'plain-1.saved' / 'model_best.pth.tar'
    return left, requests


def difference(got: dict, expected: dict) -> float:
    """Largest difference of two state dicts, each tensor's over its largest value (at least 1)."""
    assert got.keys() == expected.keys()
    return max(
        float((got[key] - value).abs().max() / value.abs().max().clamp(min=1))
        for key, value in expected.items()
        if value.is_floating_point()
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in RUNS if name != 'sync'])
def test_ranks_end_with_the_same_weights(name, trained):
    left, _ = trained
    (one, weights, head), (two, others, other_head) = left[name, 2, 0], left[name, 2, 1]
    assert one['world'] == two['world'] == 2
    assert not torch.equal(head, other_head)  # each rank's own, before DDP
    assert one['seen'][0] == [0, 1, 2, 3]  # the images come by class, two of each
    assert one['seen'] == two['seen']
    assert one['losses'] != two['losses']  # not the same images
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)


@pytest.mark.slow
def test_the_statistics_of_ranks_are_their_own_until_averaged(trained):
    left, _ = trained
    # DDP copies the first rank's before every step; the last step's update parts them again
    one, two = (left['norms', 2, rank][0]['mean'] for rank in (0, 1))
    averaged = left['norms', 2, 0][1]['layer4.0.bn3.running_mean']
    assert relative_error(two, one) > 1e-3
    assert relative_error(averaged, (one + two) / 2) < TOLERANCE


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(trained):
    left, _ = trained
    told, weights, head = left['plain', 1, 0]
    assert told['world'] == 1
    assert sum(map(len, told['seen'])) == 2 * 20
    start = timm.create_model('test_res2net_se', pretrained=True).double().state_dict()
    shared = {key: value for key, value in start.items() if not key.startswith('fc.')}
    # it has learnt: the tolerance is nothing beside what training changed
    assert difference({key: weights[key] for key in shared}, shared) > 1e-3
    assert torch.equal(head, left['plain', 2, 0][2])
    for rank in (0, 1):
        assert difference(left['plain', 2, rank][1], weights) < TOLERANCE
    # the loss of a batch is the mean of its halves'
    halves = zip(left['plain', 2, 0][0]['losses'], left['plain', 2, 1][0]['losses'], strict=True)
    assert [sum(two) / 2 for two in halves] == pytest.approx(told['losses'], rel=TOLERANCE)
    # where norm layers learn their statistics, each process has those of its own half
    assert difference(left['norms', 2, 0][1], left['norms', 1, 0][1]) > 1e-4


@pytest.mark.slow
def test_syncbatchnorm_trains_on_accelerators_only(trained):
    """On a CPU torch refuses a converted model, aloud and on every rank, as DDP takes it."""
    left, _ = trained
    for rank in (0, 1):
        told = left['sync', 2, rank][0]
        assert told['norm'] == 'SyncBatchNorm'
        assert told['error'] == 'SyncBatchNorm layers only work with GPU modules'


@pytest.mark.slow
def test_one_process_of_a_node_downloads(trained):
    _, requests = trained
    paths = [(method, path) for method, path, _ in requests]
    weights = [path for method, path in paths if method == 'GET' and path.startswith('/cdn/')]
    assert len(weights) == 1  # of two processes with five models each


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
    left, _ = trained
    _, weights, _ = left['plain', 2, 0]
    torch.save({'arch': 'test_res2net_se', 'state_dict': weights}, tmp_path / 'last.pth.tar')
    model = '--data-dir data --model test_res2net_se'
    plain, deployed, trained_on = run(
        ALONE, scripts / 'validate', [
            f'{model} --pretrained',
            f'{model} --pretrained --reparam',
            f'{model} --num-classes 12 --checkpoint {tmp_path}/last.pth.tar',
        ],
    )  # fmt: skip
    # the digits of the demo, held out from training: 20 of 20, as `timm-res2net demo` says
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
    run(ALONE, scripts / 'inference', [
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
    rows = run(ALONE, scripts / 'benchmark', [
        options, f'{options} --reparam', f'{options} --torchscript'
    ])  # fmt: skip
    for row in rows:
        assert row['params'] == 209_693  # of the package's table
        assert row['shape'] == [2, 10]
        assert row['samples_per_sec'] > 0  # no claim: it ran
