"""Arguments and configs that nobody should give, from fixed seeds, and what becomes of them.

`python -m tests.fuzz` counts the outcomes. Each case runs in a process of its own, which is killed
if it takes too long.
"""

import argparse
import collections
import dataclasses
import fractions
import inspect
import json
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from timm_res2net import Bottle2neck, Res2Net
from timm_res2net.checks import checks
from timm_res2net.folder import ModelFolder

SECONDS = 10  # for one case
MEMORY = 2 << 30  # bytes that one case may use

# What a file can hold, and what only a caller can give. A generator draws from both.
JSON: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 4, 5, 8, 16, 32, 64, -1, -2, 100, 10_000, 10**6, 10**9, 2**31,
    2**63, 10**400, 0.0, 0.5, 1.0, 2.5, 21.3, 26.0, -0.5, 1e30, 64 / 3, float('nan'), float('inf'),
    '', '4', '0.5', 'avg', 'relu', 'se', 'nope', 'os.system', 'conv1', 'fc', 'a\nb', 'x' * 99999,
    [], [1], [0, 1], [1, 1, 1, 1], [3, 4, 6, 3], [1, 1, 1, 10**6], [8, 8, 8, 2**31], [16] * 4,
    [1.5] * 4, ['1'] * 4, [[1]] * 4, [None] * 4, list(range(99)), [3, 64, 64], [0.5] * 3, ['a'] * 5,
    {}, {'scale': 4}, {'a': {'b': [1]}}, {'stage': [1, 2]},
)  # fmt: skip
OBJECTS: tuple[Any, ...] = (
    np.int64(2), np.float32(0.5), np.bool_(True), np.array(3), np.array([1, 1, 1, 1]), np.zeros(2),
    torch.tensor(2), torch.tensor(0.5), torch.tensor([1, 1, 1, 1]), torch.tensor(2j),
    torch.zeros(9), torch.tensor(True), torch.empty((), device='meta'), fractions.Fraction(1, 2),
    2j, b'4', (1, 2), (1, 1, 1, 1), (8, 8, 8, 8), {1, 2}, range(4), range(10**12), object(), print,
    int, nn.ReLU(), nn.Identity(), np.int32(10**9), np.uint8(4), bytearray(4), type, Ellipsis,
)  # fmt: skip

SMALL = {'layers': (1, 1, 1, 1), 'channels': (8, 8, 8, 8), 'num_classes': 5, 'base_width': 32}
# a small HRNet: one module of one block per branch
BRANCHES = {
    f'stage{n}': dict(
        num_modules=1, num_branches=n, block_type='BASIC', num_blocks=(1,) * n,
        num_channels=tuple(8 << i for i in range(n)), fuse_method='SUM',
    )
    for n in (2, 3, 4)
}  # fmt: skip
OF_TIMM = ('features_only', 'out_indices', 'feature_cls')  # arguments that a constructor lacks
OF_HRNET = (
    'in_chans', 'output_stride', 'cardinality', 'base_width', 'scale', 'semantics', 'attn_layer',
    'num_classes', 'global_pool', 'drop_rate', 'head', 'head_conv_bias', 'stem_width', 'stage1',
    'stage2', 'stage3', 'stage4', 'device', 'dtype', 'feature_location', *OF_TIMM,
)  # fmt: skip


def names_of(builder: Callable[..., Any]) -> list[str]:
    """Arguments of a constructor."""
    return [name for name in inspect.signature(builder).parameters if name != 'self']


def res2net(**kwargs: Any) -> nn.Module:
    return timm.create_model('test_res2net_se', **{**SMALL, **kwargs})


def hrnet(**kwargs: Any) -> nn.Module:
    return timm.create_model('hrnet_w18_res2net', **{'num_classes': 5, **BRANCHES, **kwargs})


def block(**kwargs: Any) -> nn.Module:
    model = Bottle2neck(**{'inplanes': 32, 'planes': 8, 'base_width': 32, **kwargs})
    stride, inplanes, out = (
        kwargs.get('stride', 1),
        model.conv1.in_channels,
        model.conv3.out_channels,
    )
    if kwargs.get('downsample') is None and (stride, inplanes) != (1, out):  # it needs a shortcut
        shortcut = nn.Conv2d(inplanes, out, 1, int(stride))
        model.downsample = shortcut.to(model.conv1.weight.device, model.conv1.weight.dtype)
    return model


BUILDERS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    'Res2Net': (res2net, (*names_of(Res2Net), *OF_TIMM)),
    'Bottle2neck': (block, tuple(names_of(Bottle2neck))),
    'HRNet': (hrnet, OF_HRNET),
}


def argument_sets(builder: str, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield arguments of which one to three are drawn; each argument comes up in turn."""
    draw = random.Random(f'{builder} {seed}')
    names = BUILDERS[builder][1]
    for i in range(count):
        others = draw.sample(names, draw.choice((0, 0, 1, 2)))
        yield {name: draw.choice(JSON + OBJECTS) for name in {names[i % len(names)], *others}}


CONFIG = (
    'architecture', 'num_classes', 'num_features', 'global_pool', 'label_names', 'described_by',
    'label_descriptions', 'model_args', 'made_from', 'pretrained_cfg', 'auto_map',
)  # fmt: skip
CFG = tuple(f'pretrained_cfg.{field.name}' for field in dataclasses.fields(PretrainedCfg))
ARGS = tuple(f'model_args.{name}' for name in (*names_of(Res2Net), *OF_TIMM, 'block_args', 'nope'))
ARCHITECTURES = ('test_res2net_se', 'res2net50_26w_4s', 'res2net_custom')


def configs(base: dict[str, Any], count: int, seed: int = 0) -> Iterator[str]:
    """Yield the text of config.json files of which one to three fields are drawn."""
    draw = random.Random(f'config {seed}')
    names = (*CONFIG, *CFG, *ARGS)
    for i in range(count):
        config = json.loads(json.dumps(base))
        if draw.random() < 0.2:
            config['architecture'] = draw.choice(ARCHITECTURES)
        others = draw.sample(names, draw.choice((0, 0, 1, 2)))
        for name in {names[i % len(names)], *others}:
            where, _, key = name.rpartition('.')
            inner = config.setdefault(where, {}) if where else config
            if isinstance(inner, dict):
                if draw.random() < 0.1:
                    inner.pop(key, None)
                else:
                    inner[key] = draw.choice(JSON)
        text = json.dumps(config)
        if draw.random() < 0.05:  # a file that is damaged
            at = draw.randrange(len(text))
            text = draw.choice((text[:at], text[:at] + draw.choice('[{",0x') + text[at + 1 :]))
        yield text


def has_sense(name: str, value: Any) -> bool:
    """Return whether a value that was taken is of the kind that the argument's name asks for."""
    value = value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
    if value is None:  # `timm.create_model` leaves it out
        return True
    if name in ('drop_rate', 'drop_path_rate', 'drop_block_rate'):
        return not isinstance(value, bool | str) and 0 <= float(value) <= 1
    numbers = ('num_classes', 'in_chans', 'scale', 'cardinality', 'base_width', 'stem_width')
    if name in (*numbers, 'dilation', 'first_dilation', 'stride', 'inplanes', 'planes'):
        return not isinstance(value, bool | str | np.bool_)
    if name in ('avg_down', 'replace_stem_pool', 'zero_init_last', 'features_only'):
        return isinstance(value, bool | np.bool_)
    return True


def run(model: nn.Module, channels: int) -> None:
    """Run a model in training mode, which uses all that it was built with."""
    parameter = next(model.parameters())
    kind = {'device': parameter.device, 'dtype': parameter.dtype}
    model.train()(torch.zeros(2, channels, 64, 64, **kind))


def first_channels(model: nn.Module) -> int:
    return next(p for p in model.parameters() if p.ndim == 4).shape[1]


def text_of(error: Exception) -> str:
    """Return whose error it is: a sentence of one line, or the name of what others raise."""
    by_us = isinstance(error, ValueError | TypeError) and '\n' not in str(error)
    frames = []
    trace = error.__traceback__
    while trace:
        frames.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    ours = 'timm_res2net' in frames[-1] or 'unexpected keyword argument' in str(error)
    return 'a sentence' if by_us and ours else f"somebody else's {type(error).__name__}"


def outcome_of(build: Callable[[], nn.Module]) -> str:
    try:
        model = build()
    except Exception as error:
        return text_of(error)
    try:
        run(model, first_channels(model))
    except Exception:
        return 'accepted without sense'
    return 'fine'


def outcome_of_arguments(builder: str, arguments: dict[str, Any]) -> str:
    outcome = outcome_of(lambda: BUILDERS[builder][0](**arguments))
    if outcome != 'fine' or all(has_sense(name, value) for name, value in arguments.items()):
        return outcome
    return 'accepted without sense'


def outcome_of_config(folder: Path) -> str:
    try:
        findings = checks(ModelFolder(folder), 'check')
    except Exception as error:
        return text_of(error)
    errors = [f.text for f in findings if f.state == 'error']
    if errors:
        # what only preparing an image shows is told in torch's words
        wrapped = errors[0].startswith('Images cannot be prepared with ')
        foreign = not wrapped and any(f'{kind}: ' in errors[0] for kind in FOREIGN)
        foreign = foreign or '\n' in errors[0]
        return "somebody else's words" if foreign else 'a sentence'
    try:
        model = ModelFolder(folder).create_model()
        run(model, first_channels(model))
    except Exception as error:
        return f'checked, then {text_of(error)}'
    return 'fine'


def outcome_in_timm(folder: Path) -> str:
    return outcome_of(lambda: timm.create_model(f'local-dir:{folder}', pretrained=True))


FOREIGN = (
    'TypeError',
    'AttributeError',
    'AssertionError',
    'KeyError',
    'RuntimeError',
    'IndexError',
)


def apart(ask: Callable[..., str], *args: Any) -> str:
    """Return the outcome of a case that runs in a process of its own, under limits."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        virtual = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * MEMORY,) * 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        warnings.simplefilter('ignore')
        try:
            answer = ask(*args)
        except MemoryError:
            answer = 'memory'
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        os.write(write, ('memory' if used > MEMORY else answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return 'hung' if os.WTERMSIG(status) == signal.SIGALRM else 'killed'
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m tests.fuzz', description=(__doc__ or '').splitlines()[0]
    )
    add = parser.add_argument
    add('--only', choices=(*BUILDERS, *CONFIGS), help='what to draw for (default: all)')
    add('--seed', type=int, default=0, help='seed of the cases (default: %(default)s)')
    add('--count', type=int, default=500, help='cases of each kind (default: %(default)s)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        for what in [args.only] if args.only else (*BUILDERS, *CONFIGS):
            counts: collections.Counter[str] = collections.Counter()
            for case, outcome in outcomes(what, args.count, args.seed, Path(made)):
                counts[outcome] += 1
                if outcome not in ('fine', 'a sentence'):
                    print(f'{what} | {outcome} | {case}', file=sys.stderr)
            print(what, json.dumps(dict(sorted(counts.items()))))


CONFIGS = {'check': outcome_of_config, 'local-dir': outcome_in_timm}
"""Who reads a config.json."""


def outcomes(what: str, count: int, seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the cases of a kind with their outcomes."""
    if what in BUILDERS:
        for case in argument_sets(what, count, seed):
            yield f'{case!r:.300}', apart(outcome_of_arguments, what, case)
        return
    for text in configs(write_folder(folder), count, seed):
        (folder / 'config.json').write_text(text)
        yield ' '.join(text.split())[:3000], apart(CONFIGS[what], folder)


def write_folder(folder: Path) -> dict[str, Any]:
    """Write a small model, and return its config."""
    from safetensors.torch import save_file

    from timm_res2net import push_to_hub

    model = timm.create_model('test_res2net_se', num_classes=5)
    config = push_to_hub(model, 'me/net', license='mit', dry_run=True).config
    save_file(model.state_dict(), folder / 'model.safetensors', {'format': 'pt'})
    return json.loads(config.to_json())


if __name__ == '__main__':
    main()
