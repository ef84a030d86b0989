"""A deployed model under everything that goes on around it: each answer is the sequential one."""

import copy
import multiprocessing
import pickle
import random
import threading

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.common import TINY, image, randomise, relative_error, slow_except
from timm_res2net import reparameterize_model
from timm_res2net.layers import fused_conv
from timm_res2net.layers.fused_block import FusedStage
from timm_res2net.layers.fused_conv import fuse

SHAPES = [(1, 64, 64), (2, 48, 80), (1, 96, 64), (3, 33, 65)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """All layers of the digits model run packed."""
    monkeypatch.setattr(fused_conv, 'SMALL', 1)


# how often each input runs; the work of a layer's packs depends on what came before
runs = pytest.mark.parametrize('runs', slow_except([3], [3, 100]))


class Case:
    """A deployed model, inputs of several shapes, and what a fresh copy answers to each."""

    def __init__(self, **kwargs):
        torch.manual_seed(0)
        self.plain = randomise(timm.create_model(TINY, **kwargs)).eval()
        self.model = reparameterize_model(self.plain)
        self.inputs = [torch.randn(batch, 3, *size) for batch, *size in SHAPES]
        self.expected = [self.run(copy.deepcopy(self.model), x) for x in self.inputs]

    @staticmethod
    def run(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            out = model(x)
        return out if isinstance(out, list) else [out]

    def is_right(self, i: int, model: nn.Module | None = None) -> bool:
        found = self.run(model or self.model, self.inputs[i])
        return all(torch.equal(*pair) for pair in zip(found, self.expected[i], strict=True))


def watch(module, args, output):
    """A hook that changes nothing."""


@pytest.fixture(params=[{'attn_layer': ''}, {'features_only': True}], ids=['plain', 'SE features'])
def case(request):
    return Case(**request.param)


@runs
def test_threads(case, runs):
    """Four with the shapes in other orders, while the model is copied, pickled and watched."""
    wrong, threads = [], torch.get_num_threads()

    def work(seed):
        torch.set_num_threads(threads)
        order = random.Random(seed)
        for _ in range(runs):
            for i in order.sample(range(len(SHAPES)), len(SHAPES)):
                if not case.is_right(i):
                    wrong.append(SHAPES[i])

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    copies = []
    while any(worker.is_alive() for worker in workers):
        handles = [module.register_forward_hook(watch) for module in case.model.modules()]
        copies = [copy.deepcopy(case.model), pickle.loads(pickle.dumps(case.model))]
        for handle in handles:
            handle.remove()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert all(case.is_right(i, one) for one in copies for i in range(len(SHAPES)))


@runs
def test_one_after_another(case, runs):
    """Hooks come and go, results and inputs are written to, weights are loaded, copies are made."""
    order, handles, model = random.Random(3), [], case.model
    modules = list(model.modules())
    for _ in range(runs * len(SHAPES)):
        i = order.randrange(len(SHAPES))
        x = case.inputs[i].clone()
        found = case.run(model, x)
        assert torch.equal(x, case.inputs[i])
        for k, one in enumerate(found):
            assert torch.equal(one, case.expected[i][k])
            with torch.inference_mode():
                one.fill_(float('nan'))  # the others stay as they are
        action = order.randrange(6)
        if action == 0:
            handles.append(order.choice(modules).register_forward_hook(watch))
        elif action == 1 and handles:
            handles.pop(order.randrange(len(handles))).remove()
        elif action == 2:
            model.load_state_dict(copy.deepcopy(model.state_dict()))
        elif action == 3:
            assert case.is_right(i, copy.deepcopy(model))
        elif action == 4:
            assert case.is_right(i, pickle.loads(pickle.dumps(model)))


@pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(), reason='this system cannot fork'
)
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_fork():
    """As the workers of a DataLoader, which run in one thread."""
    case, threads = Case(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        case.expected = [case.run(copy.deepcopy(case.model), x) for x in case.inputs]
        assert all(case.is_right(i) for i in range(len(SHAPES)))  # packed in the parent
        child = multiprocessing.get_context('fork').Process(target=check_all, args=(case,))
        child.start()
        assert all(case.is_right(i) for i in range(len(SHAPES)))
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)


def check_all(case):
    torch.set_num_threads(1)
    assert all(case.is_right(i) for i in range(len(SHAPES)))


def test_one_tensor_in_several_places():
    """A batch that repeats an image without a copy of it, and a residual that is the input."""
    case = Case(attn_layer='')
    x = case.inputs[0].expand(3, -1, -1, -1)
    layer = fuse(nn.Conv2d(8, 8, 1), nn.Identity(), nn.ReLU())
    stage = FusedStage(case.model.layer2[1], case.model.layer2[1])
    plain = nn.Sequential(case.plain.layer2[1], case.plain.layer2[1])
    y, z = (
        image(2, 9, channels).contiguous(memory_format=torch.channels_last) for channels in (128, 8)
    )
    kept = y.clone(), z.clone()
    with torch.inference_mode():
        for _ in range(3):
            assert relative_error(case.model(x), case.plain(x)) < 1e-5
            assert (
                relative_error(layer(z, z), F.relu(F.conv2d(z, layer.weight, layer.bias) + z))
                < 1e-5
            )
            assert relative_error(stage(y), plain(y)) < 1e-5
            assert torch.equal(y, kept[0])
            assert torch.equal(z, kept[1])
