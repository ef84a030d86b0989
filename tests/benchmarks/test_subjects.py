"""Pairs, suites, models and what a machine can do."""

import math
import os
import shutil

import pytest
import timm
import torch
from torch import nn

from benchmarks import article, runtimes, subjects
from benchmarks.attribution import counts
from benchmarks.runtimes import MODES, Mode
from benchmarks.subjects import (
    SUITES,
    Cell,
    Spec,
    build,
    check,
    deploy,
    find_pair,
    label,
    load_pairs,
    load_suite,
    make_input,
    plain_pairs,
    prepare,
)  # fmt: skip
from tests.common import image, randomise, relative_error

CELL = dict(
    kind='time', pair='main', task='infer', mode='eager', precision='fp32', layout='channels_last',
    batch=2, size=64, threads=1, device='cpu',
)  # fmt: skip


def cell(**changes):
    return Cell(**{**CELL, **changes})


def test_the_pairs_asked_for():
    models = {
        tuple(label(spec) for spec in find_pair(name).values()) for name in plain_pairs()
    }  # fmt: skip
    assert models == {
        ('resnet50', 'res2net50_26w_4s'),
        ('resnet50', 'res2net50_48w_2s'),
        ('resnet50', 'res2net50_14w_8s'),
        ('resnet101', 'res2net101_26w_4s'),
        ('resnet50d', 'res2net50d'),
        ('resnext50_32x4d', 'res2next50'),
        ('seresnet50', 'res2net50_se'),
        ('resnet50', 'resnet50'),
        ('dla60', 'dla60_res2net'),
        ('resnet50', 'article'),
        ('resnet50(base_width=41)', 'article'),
        ('resnet50(base_width=40)', 'article'),
        ('res2net50_26w_4s', "res2net50_se(attn_layer='')"),
        (
            "res2net50_se(attn_layer='')",
            "res2net50_se(attn_layer='', width_multiple=8)",
        ),
        ('resnet50', "res2net50_se(attn_layer='', width_multiple=8)"),
    }


def test_the_pairs_with_modes_of_their_own():
    ours, resnet = 'res2net50_26w_4s', 'resnet50'
    assert {
        name: ' → '.join(label(spec) for spec in find_pair(name).values())
        for name in load_pairs()
        if name not in plain_pairs()
    } == {
        'deploy': f'{ours} [eager] → {ours} [deploy]',
        'swap': f'{resnet} [eager] → {ours} [deploy]',
        'resnet_deploy': f'{resnet} [eager] → {resnet} [deploy]',
        'swap_deploy': f'{resnet} [deploy] → {ours} [deploy]',
        'deploy_compiled': f'{ours} [compiled] → {ours} [deploy+compiled]',
        'main_frozen': f'{resnet} [frozen] → {ours} [frozen]',
        'deploy_frozen': f'{ours} [frozen] → {ours} [deploy+frozen]',
        'swap_frozen': f'{resnet} [frozen] → {ours} [deploy+frozen]',
        'frozen_deploy': f'{resnet} [frozen] → {ours} [deploy]',
        'main_onnxruntime': f'{resnet} [onnxruntime] → {ours} [onnxruntime]',
        'main_openvino': f'{resnet} [openvino] → {ours} [openvino]',
        'deploy_onnxruntime': f'{ours} [deploy] → {ours} [deploy+onnxruntime]',
        'deploy_openvino': f'{ours} [deploy] → {ours} [deploy+openvino]',
        'export_onnxruntime': f'{ours} [onnxruntime] → {ours} [deploy+onnxruntime]',
        'export_openvino': f'{ours} [openvino] → {ours} [deploy+openvino]',
    }
    for name in load_pairs():
        modes = [spec.mode for spec in find_pair(name).values()]
        assert all(mode in MODES for mode in modes) or modes == ['', '']


def test_a_pair_with_modes_of_its_own_ignores_the_cells():
    modes = {'pairs': ['deploy', 'main'], 'mode': ['eager', 'compiled'], 'batch': [1]}
    cells = load_suite('cpu', {**modes, 'size': [224], 'threads': [1], 'task': ['infer']}, ['time'])
    assert {(c.pair, c.mode) for c in cells} == {
        ('deploy', 'eager->deploy'), ('main', 'eager'), ('main', 'compiled'),
    }  # fmt: skip
    text = {str(c) for c in cells if c.pair == 'deploy' and c.precision == 'fp32'}
    assert 'deploy infer eager->deploy fp32 channels_last b1 224px t1' in text
    both = load_suite('smoke', {'pairs': ['deploy', 'main']}, ['attribution'])
    assert [c.pair for c in both] == ['main']


def test_the_deploy_suite_can_run():
    cells = load_suite('deploy')
    own = {c.pair for c in cells} - {'ours'}
    assert own == set(load_pairs()) - set(plain_pairs())
    for c in cells:
        assert c.task == 'infer' or c.pair == 'ours'
        assert not c.mode.count('onnxruntime') or c.precision == 'fp32'
    assert len(cells) == len({c.key for c in cells}) == 78


@pytest.mark.parametrize('text', MODES)
def test_modes(text):
    deploys, runtime = Mode.of(text)
    assert deploys == text.startswith('deploy')
    assert runtime == (text.removeprefix('deploy').removeprefix('+') or 'eager')


def test_all_modes():
    others = ('compiled', 'frozen', 'onnxruntime', 'openvino')
    expected = ('eager', *others, 'deploy', *(f'deploy+{name}' for name in others))
    assert expected == MODES
    assert subjects.AXES['mode'][0] == MODES
    for text in ('deploy+', 'deploy+eager', 'frozen+deploy', ''):
        with pytest.raises(ValueError) as error:
            Mode.of(text)
        assert str(error.value) == f"Unknown mode '{text}'. Use one of {', '.join(MODES)}."


def test_the_cpu_suite_has_the_grid_the_pairs_and_the_curves():
    cells = load_suite('cpu')
    times = [c for c in cells if c.kind == 'time']
    threads = torch.get_num_threads()
    for task in ('infer', 'train'):
        for mode in ('eager', 'compiled'):
            for precision in ('fp32', 'bf16'):
                for layout in ('channels_last', 'contiguous'):
                    for batch in (1, 8):
                        assert (
                            Cell(
                                'time', 'main', task, mode, precision, layout, batch, 224, threads,
                                'cpu',
                            )
                            in times
                        )  # fmt: skip
    usual = {c.pair for c in times if (c.batch, c.size, c.threads) == (8, 224, threads)}
    plain = set(plain_pairs())
    assert usual == plain
    assert {c.pair for c in cells if c.kind == 'attribution'} == plain
    assert {c.pair for c in cells if c.kind == 'memory' and c.task == 'train'} == plain
    curves = [c for c in times if c.pair == 'main' and c.threads == 1]
    assert {c.batch for c in curves if c.size == 224} == {1, 4, 8, 16, 64}
    assert {c.size for c in curves if c.batch == 8} == {128, 192, 224, 288, 384}
    assert len(cells) == len({c.key for c in cells})


def test_the_gpu_suite():
    cells = load_suite('gpu')
    assert {c.device for c in cells} == {'cuda'}
    grid = {(c.task, c.mode, c.precision, c.batch) for c in cells if c.pair == 'main'}
    for task in ('infer', 'train'):
        for mode in ('eager', 'compiled'):
            assert {(task, mode, 'bf16', b) for b in (1, 64, 256)} <= grid
    assert all(c.layout == 'channels_last' for c in cells)


def test_given_values_stand_in_for_the_suites():
    cells = load_suite(
        'cpu', {'pairs': ['dla60:dla60_res2net'], 'batch': [2], 'size': [96]}, ['time'], budget=7
    )
    assert {(c.pair, c.batch, c.size, c.kind) for c in cells} == {
        ('dla60:dla60_res2net', 2, 96, 'time')
    }
    assert set(cells.values()) == {7}
    assert {c.device for c in load_suite('smoke', device='cuda')} == {'cuda'}
    assert len(load_suite('smoke', {'pairs': ['*']}, ['memory'])) == 2 * len(plain_pairs())


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (('huge',), f"Unknown suite 'huge'. Use one of {', '.join(SUITES)}."),
        (
            ('cpu', {'pairs': ['man']}),
            f"Unknown pair 'man'. Use one of {', '.join(load_pairs())}, or BASELINE:SUBJECT with "
            'two model names.',
        ),
        (
            ('cpu', {'pairs': ['resnet50:res2net50_sx']}),
            "Unknown model 'res2net50_sx' in pair 'resnet50:res2net50_sx'. Did you mean "
            'res2net50_se, ',
        ),
        (
            ('cpu', {'mode': ['fast']}),
            f"mode='fast' must be one of {', '.join(MODES)}.",
        ),
        (('cpu', {'batch': [0]}), 'batch=0 must be at least 1.'),
        (('cpu', {}, ['time'], 0), 'budget=0 must be a number of seconds above 0.'),
        (('cpu', {}, ['time'], math.inf), 'budget=inf must be a number of seconds above 0.'),
        (
            ('cpu', {'task': ['train']}, ['attribution']),
            "Nothing of suite 'cpu' is left. Attribution is for inference in eager mode; name "
            'other values or another --only.',
        ),
    ],
)  # fmt: skip
def test_errors_of_a_suite(arguments, text):
    with pytest.raises(ValueError) as error:
        load_suite(*arguments)
    assert str(error.value).startswith(text)


def test_what_a_machine_cannot_do(monkeypatch):
    check(cell())
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(subjects, 'cpu_has_bf16', lambda: False)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    for changes, text in (
        (
            {'device': 'cuda'},
            "Device 'cuda' needs a GPU and a torch built for it; torch sees none here. Run --suite "
            'cpu, or install the CUDA build of torch.',
        ),
        (
            {'precision': 'bf16'},
            "Precision 'bf16' would be emulated on this CPU: its time says nothing. Use "
            '--precision fp32.',
        ),
        (
            {'precision': 'fp16'},
            "Precision 'fp16' is for GPUs. Use --precision bf16 or fp32 on a CPU.",
        ),
        (
            {'mode': 'compiled'},
            "Mode 'compiled' needs a C++ compiler, and none is on the path. Install g++, name one "
            'in CXX, or use --mode eager.',
        ),
        (
            {'pair': 'deploy_frozen', 'mode': 'frozen->deploy+frozen'},
            "Mode 'frozen' needs a C++ compiler, and none is on the path. Install g++, name one in "
            'CXX, or use --mode eager.',
        ),
        (
            {'precision': 'bf16-weights'},
            "Precision 'bf16-weights' would be emulated on this CPU: its time says nothing. Use "
            '--precision fp32.',
        ),
        (
            {'threads': 5},
            'threads=5 is more than the 4 cores of this machine. Use --threads 4 or fewer.',
        ),
    ):
        with pytest.raises(ValueError) as error:
            check(cell(**changes))
        assert str(error.value) == text
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: False)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='would be emulated on this GPU'):
        check(cell(device='cuda', precision='bf16'))
    with pytest.raises(ValueError, match="'compiled' needs triton"):
        check(cell(device='cuda', mode='compiled'))


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        *(
            ({'mode': mode, 'task': 'train'}, f"Mode '{mode}' is for inference. Use --task infer.")
            for mode in ('deploy', 'frozen', 'deploy+compiled', 'openvino')
        ),
        (
            {'pair': 'deploy', 'mode': 'eager->deploy', 'task': 'train'},
            "Mode 'deploy' is for inference. Use --task infer.",
        ),
        (
            {'mode': 'deploy', 'kind': 'memory'},
            "Kind 'memory' does not see the weights that mode 'deploy' packs for itself. Use "
            '--only time, or mode eager or compiled.',
        ),
        (
            {'precision': 'bf16-weights', 'task': 'train'},
            "Precision 'bf16-weights' is for inference. Use --task infer, or --precision bf16.",
        ),
        (
            {'mode': 'deploy+openvino', 'device': 'cuda'},
            "Mode 'deploy+openvino' runs on a CPU here. Use --device cpu.",
        ),
        *(
            (
                {'mode': 'onnxruntime', 'precision': precision},
                "Mode 'onnxruntime' does not run in bfloat16 on a CPU. Use --precision fp32, or "
                'openvino.',
            )
            for precision in ('bf16', 'bf16-weights')
        ),
    ],
)
def test_what_does_not_go_together(changes, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(subjects, 'cpu_has_bf16', lambda: True)
    monkeypatch.setattr(subjects, '_compiler', lambda: 'g++')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    with pytest.raises(ValueError) as error:
        check(cell(**changes))
    assert str(error.value) == text


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_a_missing_runtime(runtime, monkeypatch):
    for missing in runtimes.EXPORTED[runtime]:
        monkeypatch.setattr('importlib.util.find_spec', lambda name, m=missing: name != m or None)
        for mode in (runtime, f'deploy+{runtime}'):
            with pytest.raises(ValueError) as error:
                check(cell(mode=mode))
            assert str(error.value) == (
                f"Mode '{runtime}' needs {missing}. Install it: "
                "pip install 'timm-res2net[runtimes]'."
            )
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    check(cell(mode=runtime))


@pytest.mark.parametrize('name', ['resnet50', 'resnext50_32x4d', 'res2net50_26w_4s'])
def test_the_deploy_form_computes_the_same(name):
    model = randomise(timm.create_model(name, layers=[1, 2, 1, 1])).double().eval()
    x = image(2, 64).double()
    with torch.inference_mode():
        expected = model(x)
        deployed = deploy(model, name)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
        assert relative_error(deployed(x), expected) < 1e-12  # in double, some 50 layers


def test_the_deploy_form_of_a_resnet_runs_packed_and_over_its_shortcuts():
    model = randomise(timm.create_model('resnet50', layers=[1, 2, 1, 1])).eval()
    model = model.to(memory_format=torch.channels_last)
    x = image(2, 64).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.inference_mode():
        expected = model(x)
    deployed = deploy(model, 'resnet50')
    with torch.inference_mode():
        for _ in range(3):  # unpacked, packing, packed
            assert relative_error(deployed(x), expected) < 1e-5
    assert torch.equal(x, kept)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50d', 'seresnet50', 'dla60_res2net'])
def test_models_without_a_deploy_form(name):
    with pytest.raises(ValueError) as error:
        deploy(build(Spec(name), 'meta'), name)
    assert str(error.value) == (
        f"Model '{name}' has no deploy form. Use a Res2Net of timm or of this package, or a "
        "ResNet of timm's plain bottlenecks such as resnet50."
    )


TINY = 'test_res2net_se'


@pytest.mark.parametrize('mode', ['eager', 'deploy'])
def test_weights_and_input_in_bf16(mode):
    here = cell(precision='bf16-weights', mode=mode)
    x = make_input(here)
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)
    work = prepare(Spec(TINY), here, x)
    assert {t.dtype for t in work.model.parameters()} == {torch.bfloat16}
    expected = prepare(Spec(TINY), cell(), make_input(cell())).step()
    for _ in range(3):
        out = work.step()
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), expected) < 0.05  # eps of bfloat16 is 0.008


@pytest.mark.parametrize('deploys', [False, True])
@pytest.mark.parametrize(
    ('runtime', 'precision', 'error'),
    [('onnxruntime', 'fp32', 1e-4), ('openvino', 'fp32', 1e-4), ('openvino', 'bf16', 0.05)],
)
def test_exported_models_compute_the_same(runtime, precision, error, deploys, monkeypatch):
    for package in runtimes.EXPORTED[runtime]:
        pytest.importorskip(package)
    plain = subjects.build
    monkeypatch.setattr(subjects, 'build', lambda *args: randomise(plain(*args)))
    subjects._exported.cache_clear()
    here = cell(mode=f'deploy+{runtime}' if deploys else runtime, precision=precision)
    x = make_input(here)
    expected = prepare(Spec(TINY), cell(), x).step().clone()
    work = prepare(Spec(TINY), here, x)
    for _ in range(2):
        out = torch.from_numpy(work.step().copy())
        assert relative_error(out, expected) < error
    subjects._exported.cache_clear()


@pytest.mark.skipif(subjects._compiler() is None, reason='needs a C++ compiler')
def test_frozen_weights_are_constants():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    x = image(1, 8)

    def run():
        with torch.inference_mode():
            return model(x)

    expected = run().clone()
    assert runtimes.freeze(model, run) is model
    assert not torch._inductor.config.freezing
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].running_mean.add_(1)
    assert relative_error(run(), expected) < 1e-5
    torch.compiler.reset()


def test_equal_macs_are_the_closest_that_a_base_width_gives():
    macs = counts(Spec('article'), 224)['macs']
    others = {
        width: abs(counts(Spec('resnet50', {'base_width': width}), 224)['macs'] / macs - 1)
        for width in range(32, 65)
    }
    assert min(others, key=others.__getitem__) == 41
    assert others[41] == pytest.approx(0.0036, abs=5e-5)
    assert others[40] == pytest.approx(0.0235, abs=5e-5)
    full = counts(Spec('resnet50'), 224)
    assert macs / full['macs'] == pytest.approx(0.577, abs=5e-4)
    # arXiv:2003.13678, table of ResNet-50: 25.6 M parameters, 4.1 GFLOPs, 11.1 M activations
    assert full['params'] == 25_557_032
    assert full['macs'] / 1e9 == pytest.approx(4.09, abs=5e-3)
    assert full['activations'] / 1e6 == pytest.approx(11.1, abs=0.05)


def rotated(chunks):
    return torch.cat([*chunks[1:], chunks[0]])


def test_the_articles_network_is_ours_with_biases_and_another_order():
    """Its biases go into the running means, its first split becomes our last."""
    theirs = randomise(article.Res2Net((1, 2, 1, 1))).double().eval()
    ours = timm.create_model('res2net50_16w_4s_se', layers=[1, 2, 1, 1]).double().eval()
    source = theirs.state_dict()
    target = {}

    def conv_bn(conv, bn, to_conv, to_bn, rotate=False):
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            target[f'{to_bn}.{name}'] = source[f'{bn}.{name}']
        target[f'{to_conv}.weight'] = source[f'{conv}.weight']
        target[f'{to_bn}.running_mean'] = (
            source[f'{bn}.running_mean'] - source.get(f'{conv}.bias', 0.0)
        )  # fmt: skip
        if rotate:
            for key in (f'{to_conv}.weight', *(k for k in target if k.startswith(f'{to_bn}.'))):
                target[key] = rotated(target[key].chunk(4))

    conv_bn('stem.0', 'stem.1', 'conv1', 'bn1')
    for stage, depth in enumerate((1, 2, 1, 1)):
        for i in range(depth):
            a, b = f'layers.{stage}.{i}', f'layer{stage + 1}.{i}'
            conv_bn(f'{a}.conv1', f'{a}.bn1', f'{b}.conv1', f'{b}.bn1', rotate=True)
            for j in range(3):
                conv_bn(f'{a}.conv2.{j}', f'{a}.bn2.{j}', f'{b}.convs.{j}', f'{b}.bns.{j}')
            conv_bn(f'{a}.conv3', f'{a}.bn3', f'{b}.conv3', f'{b}.bn3')
            turned = rotated(target[f'{b}.conv3.weight'].transpose(0, 1).chunk(4))
            target[f'{b}.conv3.weight'] = turned.transpose(0, 1)
            for name in ('fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'):
                target[f'{b}.se.{name}'] = source[f'{a}.se.{name}']
            if i == 0:
                conv_bn(
                    f'{a}.downsample.0', f'{a}.downsample.1', f'{b}.downsample.0',
                    f'{b}.downsample.1',
                )  # fmt: skip
    target.update({f'fc.{name}': source[f'fc.{name}'] for name in ('weight', 'bias')})
    counters = [k for k in ours.state_dict() if k.endswith('num_batches_tracked')]
    missing, unexpected = ours.load_state_dict(target, strict=False)
    assert set(missing) <= set(counters)
    assert not unexpected
    x = image(2, 96).double()
    with torch.inference_mode():
        assert relative_error(ours(x).softmax(1), theirs(x)) < 1e-12


def test_the_articles_network_has_the_parameters_known_of_it():
    assert sum(p.numel() for p in article.Res2Net().parameters()) == 18_916_424
    with pytest.raises(ValueError, match=r'^planes=30 must be a multiple of scales=4\.$'):
        article.Block(8, 30, 1, 4, 1, False)


def test_models_do_work():
    """No BatchNorm is left at 0, whose products a GPU computes with less power."""
    for name in ('resnet50', 'res2net50_26w_4s', 'article'):
        norms = [m for m in build(Spec(name)).modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(bool(norm.weight.any()) for norm in norms)


@pytest.mark.parametrize('layout', ['channels_last', 'contiguous'])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('task', ['infer', 'train'])
def test_a_step_of_every_kind(task, precision, layout):
    here = cell(task=task, precision=precision, layout=layout)
    form = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
    x = make_input(here)
    assert x.is_contiguous(memory_format=form)
    model, step, held = prepare(Spec('test_res2net_se'), here, x)
    assert model.layer1[0].convs[0].weight.is_contiguous(memory_format=form)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = step()
    low = torch.bfloat16 if precision == 'bf16' else torch.float32
    changed = not torch.equal(model.state_dict()['fc.weight'], before['fc.weight'])
    assert changed == model.training == (task == 'train')
    if task == 'infer':
        assert out.dtype == low
        assert out.is_inference()
    parameters = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for b in model.buffers())
    momentum = parameters if task == 'train' else 0
    assert sum(t.numel() for t in held()) == x.numel() + parameters + buffers + momentum
    assert all(p.grad is None for p in model.parameters())


def test_label():
    assert label(Spec('resnet50')) == 'resnet50'
    assert label(Spec('resnet50', {'base_width': 41})) == 'resnet50(base_width=41)'
    assert label(Spec('resnet50', {}, 'deploy')) == 'resnet50 [deploy]'
    spec = Spec('resnet50', {'base_width': 41}, 'deploy+frozen')
    assert label(spec) == 'resnet50(base_width=41) [deploy+frozen]'
    assert subjects.AXES['size'] == ((), 224)
