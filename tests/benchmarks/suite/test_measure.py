"""Taking samples: which functions are called, in which order, and when it stops."""

import gc
import random
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from benchmarks.suite.measure import (
    REBUILT,
    interleave,
    interleave_blocks,
    settled,
    synchronize,
    timed,
)  # fmt: skip
from benchmarks.suite.steps import infer_step, train_step


class Bench:
    """A clock, a synchronization and steps that log their calls."""

    def __init__(self, **seconds):
        self.log, self.now, self.seconds = [], 0.0, seconds

    def clock(self):
        self.log.append('clock')
        return self.now

    def sync(self):
        self.log.append('sync')

    def steps(self):
        def step(role):
            self.log.append(role)
            self.now += self.seconds[role]

        return {role: (lambda role=role: step(role)) for role in self.seconds}

    def interleave(self, samples, **options):
        return interleave(self.steps(), samples, clock=self.clock, sync=self.sync, **options)


def test_a_sample_waits_for_the_queue_before_both_readings():
    bench = Bench(forward=2.0)
    assert timed(bench.steps()['forward'], bench.clock, bench.sync) == 2.0
    assert bench.log == ['sync', 'clock', 'forward', 'sync', 'clock']


def test_warm_up_comes_first_and_is_not_timed():
    bench, samples = Bench(forward=2.0), {}
    bench.interleave(samples, budget=0, target=None, least_rounds=1, warmup=2)
    assert bench.log == [
        *('forward', 'forward', 'sync'),  # warm-up
        'clock',  # the budget begins
        *('sync', 'clock', 'forward', 'sync', 'clock'),
        'clock',  # and ends
    ]
    assert samples == {'forward': [2.0]}


def test_every_round_has_every_step_once_in_random_order():
    bench, samples = Bench(baseline=1.0, subject=2.0, control=1.0), {}
    bench.interleave(samples, budget=80, target=None, warmup=0, rng=random.Random(1))
    roles = [entry for entry in bench.log if entry in bench.seconds]
    rounds = [tuple(roles[i : i + 3]) for i in range(0, len(roles), 3)]
    assert len(rounds) == 20
    assert all(sorted(one) == ['baseline', 'control', 'subject'] for one in rounds)
    assert len(set(rounds)) == 6  # all orders occur
    assert samples == {'baseline': [1.0] * 20, 'subject': [2.0] * 20, 'control': [1.0] * 20}


def test_it_stops_when_settled_or_at_the_budget():
    bench, samples = Bench(baseline=1.0, subject=1.2), {}
    assert bench.interleave(samples, budget=1000, min_rounds=10)
    assert len(samples['baseline']) == 10
    samples = {}
    assert not bench.interleave(samples, budget=10, min_rounds=10)
    assert len(samples['baseline']) == 5  # the round that began within the budget is finished
    assert not bench.interleave(samples, budget=0, least_rounds=4)
    assert len(samples['baseline']) == 4


def test_blocks_build_again_and_add_up():
    bench, samples, blocks, built = Bench(baseline=1.0, subject=1.25), {}, [], [0]

    def build():
        built[0] += 1
        return bench.steps()

    def measure(budget):
        return interleave_blocks(
            build, samples, blocks, budget=budget, clock=bench.clock, sync=bench.sync
        )

    assert measure(1000)
    assert built == [6]  # settled at the first check
    # a block of 10 s: the rounds of 2.25 s that begin within it
    assert blocks == [5] * 6
    assert samples == {'baseline': [1.0] * 30, 'subject': [1.25] * 30}
    assert (
        len([entry for entry in bench.log if entry == 'subject']) == 30 + 3 + 5 * REBUILT
    )  # warm-ups

    samples, blocks = {}, []
    assert not measure(6)  # of 1 s each, at least two rounds
    assert blocks == [2, 2]


def test_an_interrupt_keeps_the_rounds_of_all_blocks():
    bench, samples, blocks = Bench(baseline=1.0, subject=1.25), {}, []

    def stop(part):
        if len(blocks) == 1 and len(part['baseline']) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave_blocks(
            bench.steps, samples, blocks, budget=1000, on_round=stop, clock=bench.clock
        )
    assert blocks == [5, 3]
    assert len(samples['baseline']) == len(samples['subject']) == 8


def test_settled():
    flat, rough = [1.0] * 20, [1.0, 1.2] * 10
    assert settled({'baseline': flat, 'subject': flat}, 0.02, 10)
    assert not settled({'baseline': flat[:9], 'subject': flat[:9]}, 0.02, 10)
    assert not settled({'baseline': flat, 'subject': rough}, 0.02, 10)
    assert not settled({'baseline': flat, 'subject': flat, 'control': [1.03] * 20}, 0.02, 10)
    assert settled({'baseline': flat, 'subject': flat, 'control': [1.01] * 20}, 0.02, 10)


def test_an_interrupt_keeps_whole_rounds_and_the_garbage_collector():
    bench, samples, count = Bench(baseline=1.0, subject=1.0), {}, [0]

    def stop(samples):
        count[0] += 1
        assert not gc.isenabled()
        if count[0] == 4:
            bench.seconds.pop('subject')  # the next round fails half way

    with pytest.raises(KeyError):
        bench.interleave(samples, budget=100, target=None, on_round=stop)
    assert samples == {'baseline': [1.0] * 4, 'subject': [1.0] * 4}
    assert gc.isenabled()


def test_synchronize():
    assert synchronize('cpu')() is None
    assert synchronize('cuda') is torch.cuda.synchronize


class Logged(nn.Linear):
    """A linear layer that logs its forward, with the mode, and its backward."""

    def __init__(self, log):
        super().__init__(4, 3)
        self.log = log

    def forward(self, x):
        self.log.append('forward, inference' if torch.is_inference_mode_enabled() else 'forward')
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda grad: self.log.append('backward'))
        return y


class LoggedSGD(torch.optim.SGD):
    def __init__(self, parameters, log):
        super().__init__(parameters, lr=0.1)
        self.log = log

    def step(self):
        self.log.append('step')
        return super().step()

    def zero_grad(self, set_to_none=True):
        self.log.append('zero_grad')
        super().zero_grad(set_to_none)


def test_inference_is_a_forward_in_inference_mode():
    log = []
    step = infer_step(Logged(log), torch.ones(2, 4), nullcontext())
    assert step().shape == (2, 3)
    assert log == ['forward, inference']


@pytest.mark.parametrize('autocast', [False, True])
def test_training_is_forward_backward_and_the_optimizers_step(autocast):
    log = []
    model = Logged(log)
    before = model.weight.clone()
    step = train_step(
        model,
        torch.ones(2, 4),
        torch.tensor([0, 1]),
        LoggedSGD(model.parameters(), log),
        torch.autocast('cpu', dtype=torch.bfloat16) if autocast else nullcontext(),
        torch.amp.GradScaler('cpu', enabled=False),
    )
    step()
    assert log == ['forward', 'backward', 'step', 'zero_grad']
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None
