"""Measure which form of a network is fastest on a CPU: eager, deployed, compiled, or exported.

    python -m benchmarks.forms --slow res2net50_26w_4s

Each form of `timm-res2net measure` runs on the same images in one thread, CPU time, random weights
(which change no time): at batch 1 and 8 with images of 224 px, and with six sizes in turn. resnet50
is deployed by the same treatment as the Res2Nets, which timm does not give it. Memory is what a
process takes at most while it runs a form, beyond its libraries; a compiler that has compiled a
small model counts as one.
"""

import copy
import ctypes
import gc
import itertools
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import nn

import timm_res2net  # noqa: F401 registers the models
from timm_res2net.export import FORMATS
from timm_res2net.export.measure import (
    CONTROL,
    FORMS,
    make_form,
    make_forms,
    ratio,
    time_forms,
)
from timm_res2net.export.run import PRECISION_HINT, Run
from timm_res2net.layers.text import table

from .changing_sizes import SIX
from .script import Script
from .suite.models import deploy

MODELS = ('resnet50', 'res2net50_26w_4s', 'res2net50_14w_8s', 'res2net50_se')
CASES = {
    'batch 1': [(1, 3, 224, 224)],
    'batch 8': [(8, 3, 224, 224)],
    'six sizes in turn': [(1, 3, *size) for size in SIX],
}
"""The shapes of the images, by case."""
LOW = 'deployed, bfloat16'
"""A form whose outputs differ by half a percent."""
EXPORTED = 'OpenVINO, float32'
"""A file that is also timed without the module around it."""


def all_forms() -> tuple[str, ...]:
    """Return the names of all forms."""
    return tuple(dict.fromkeys((*FORMS, LOW)))


def build(name: str) -> Any:
    """Return a model with random weights in eval mode."""
    torch.manual_seed(0)
    return timm.create_model(name, zero_init_last=False).eval().requires_grad_(False)


def deployed(model: nn.Module, name: str, form: str) -> Run:
    """Return the deployed form of a model, which is changed: 'deployed' or `LOW`."""
    fast = deploy(model, name)
    if form != LOW:
        return fast
    low = fast.bfloat16()
    return lambda images: low(images.bfloat16())


def without_module(path: Path) -> Run:
    """Return what runs a file of OpenVINO by one request, which is what its runtime takes alone."""
    import openvino

    settings = {PRECISION_HINT: 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    settings |= {'PERFORMANCE_HINT': 'LATENCY', 'ENABLE_CPU_PINNING': False}
    request = openvino.Core().compile_model(path, 'CPU', settings).create_infer_request()
    return lambda images: request.infer([images.numpy()], share_inputs=True, share_outputs=True)


def peak_memory(name: str, form: str, folder: str, shape: tuple[int, ...]) -> float:
    """Return how much memory this process takes at most while it runs a form, in MB.

    Args:
        name: Name of the model.
        form: One of `all_forms`.
        folder: Folder that has the form's file, if it has one.
        shape: Shape of the images.
    """
    torch.set_num_threads(1)
    images = torch.randn(shape)
    for package in FORMATS[FORMS[form]].packages if FORMS.get(form) else ():
        __import__(package)
    if form.startswith('torch.compile'):
        make_form(form, build('test_res2net_se'), [torch.randn(1, 3, 64, 64)], Path(folder), 1)
    _trim()
    before = _status('VmRSS')
    model = nn.Identity() if FORMS.get(form) else build(name)
    if form in ('deployed', LOW):
        step = deployed(model, name, form)
    else:
        step, _ = make_form(form, model, [images], Path(folder), 1)
    del model
    with torch.inference_mode():
        step(images)
        _trim()
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts here
        for _ in range(3):
            step(images)
    return round((_status('VmHWM') - before) / 1024, 1)


def _trim() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)


def _status(key: str) -> int:
    """Return a figure of this process in KiB."""
    found = re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    assert found is not None
    return int(found[1])


def measure(
    name: str, case: str, names: Collection[str], seconds: float, slow: bool, memory: bool
) -> dict[str, Any]:
    """Return the figures of forms of a model in a case.

    Args:
        name: Name of the model.
        case: A key of `CASES`.
        names: Some of `all_forms`, with 'eager'.
        seconds: How long to time.
        slow: Also measure the forms that take minutes to make.
        memory: Measure memory.
    """
    images = [torch.randn(shape) for shape in CASES[case]]
    model = build(name)
    found: dict[str, Any] = {'milliseconds': {}, 'ratios': {}, 'bytes': {}, 'memory': {}}
    with tempfile.TemporaryDirectory() as made:
        kinds = [form for form in FORMS if form in names]
        steps, sizes, left_out = make_forms(model, images, Path(made), slow, kinds)
        with torch.no_grad():
            for form in ('deployed', LOW):
                if form in names:
                    steps[form] = deployed(copy.deepcopy(model), name, form)
                    left_out.pop(form, None)
        bare = f'{EXPORTED}, without the module'
        if EXPORTED in steps:
            steps[bare] = without_module(Path(made) / 'openvino.xml')
        samples = time_forms(steps, images, seconds, time.process_time)
        if bare in samples:
            found['module'] = [round(x, 4) for x in ratio(samples[EXPORTED], samples.pop(bare))]
            print(f'The module takes × {found["module"][0]:.3f} of the time of OpenVINO alone.')
        for form, taken in samples.items():
            found['milliseconds'][form] = round(1000 * median(taken), 2)
            found['ratios'][form] = [round(x, 4) for x in ratio(taken, samples['eager'])]
        found |= {'bytes': sizes, 'left_out': left_out, 'rounds': len(samples['eager'])}
        if memory and len(images) == 1:
            for form in (form for form in all_forms() if form in steps):
                # in a process of its own
                with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                    peak = pool.submit(peak_memory, name, form, made, CASES[case][0])
                    found['memory'][form] = peak.result()
    return found


def merge(old: Mapping[str, Any], new: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a cell in which some forms have newer figures.

    Args:
        old: The cell.
        new: A newer cell with these forms and the eager mode that their ratios refer to.
        names: Some of `all_forms`.
    """
    merged = dict(old)
    for key in ('milliseconds', 'ratios', 'bytes', 'memory'):
        merged[key] = old[key] | {name: x for name, x in new[key].items() if name in names}
    left = {name: x for name, x in old['left_out'].items() if name not in new['ratios']}
    return merged | {key: new[key] for key in ('module',) if key in new} | {'left_out': left}


def usable(cell: Mapping[str, Any]) -> bool:
    """Return whether the control is within `CONTROL` of 1."""
    return abs(cell['ratios']['control'][0] - 1) <= CONTROL


def report_table(report: Mapping[str, Any]) -> str:
    """Return all times as a table: milliseconds, and the ratio to eager mode."""
    rows = []
    for (name, cases), form in itertools.product(report.items(), all_forms()):
        cells = [_cell(cases.get(case), form) for case in CASES]
        if any(cells):
            rows.append((name, form, *cells))
    return table(('network', 'form', *CASES), rows)


def _cell(cell: Mapping[str, Any] | None, form: str) -> str:
    if cell is None or form not in cell['ratios']:
        return ''
    if not usable(cell):
        return 'unusable'
    low_and_high = '{:.2f} [{:.2f}, {:.2f}]'.format(*cell['ratios'][form])
    return f'{cell["milliseconds"][form]:.0f} ms, × {low_and_high}'


def guide(report: Mapping[str, Any], losses: Mapping[str, Any], name: str) -> str:
    """Return the table of a network's forms for a person who chooses one.

    Args:
        report: What this script measured.
        losses: What `benchmarks.quantize` measured.
        name: Name of the network.
    """
    cases = report[name]
    one, eight = cases['batch 1'], cases['batch 8']
    kept = {
        'OpenVINO, bfloat16': 'OpenVINO, bfloat16',
        'OpenVINO, int8': 'OpenVINO, int8, preset mixed',
        'ONNX Runtime, int8': 'ONNX Runtime, int8, preset mixed',
    }
    rows = []
    for form in all_forms():
        times = [
            f'× {cell["ratios"][form][0]:.2f}' if form in cell['ratios'] and usable(cell) else ''
            for cell in (cases[case] for case in CASES)
        ]
        if any(times):
            size = one['bytes'].get(form)
            memory = (cell['memory'].get(form) for cell in (one, eight))
            share = '' if form == LOW else '100 %'
            if form in kept:
                share = f'{losses["res2net50_se"]["forms"][kept[form]]["same"]:.1f} %'
            parts = ['' if used is None else f'{used:.0f}' for used in memory]
            rows.append((form, *times, *parts, f'{size / 1e6:.0f}' if size else '', share))
    header = ('form', *CASES, 'MB, batch 1', 'MB, batch 8', 'file in MB', 'answers kept')
    return table(header, rows)


def sentence(report: Mapping[str, Any]) -> str:
    """Return the main figures in one sentence."""
    groups: dict[str, list[str]] = {}
    for name, cases in report.items():
        cell = cases['batch 1']
        if usable(cell):
            times = {
                form: cell['ratios'][form][0] for form in all_forms() if form in cell['ratios']
            }
            best = min(times, key=lambda form: times[form])
            groups.setdefault(best, []).append(f'{name} (× {times[best]:.2f})')
    found = '; '.join(f'{form} for {", ".join(names)}' for form, names in groups.items())
    return (
        'The fastest form at batch 1, with its time over that of eager mode: '
        f'{found or "unusable, because the controls were out of their band"}.'
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    script = Script('forms', __doc__, 'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf')
    add = script.parser.add_argument
    add('--seconds', type=float, default=30, help='seconds a case (default: %(default)g)')
    add('--models', nargs='+', default=MODELS, metavar='NAME', help='networks (default: four)')
    text = 'networks whose forms that take minutes to make are measured, too (default: none)'
    add('--slow', nargs='*', default=(), metavar='NAME', help=text)
    add('--no-memory', action='store_true', help='without memory')
    add('--keep', action='store_true', help='keep the other networks that the file has')
    text = 'forms to measure again, in the networks that the file has (default: all forms)'
    add('--forms', nargs='+', choices=all_forms(), metavar='NAME', help=text)
    args = script.parse(argv)
    torch.set_num_threads(1)
    before: dict[str, Any] = {'cells': {}, 'runs': ()}
    if args.keep or args.forms:
        if not script.out.exists():
            script.parser.error(f'There is no {script.out}. Leave out --keep and --forms.')
        before = json.loads(script.out.read_text())
    missing = [name for name in args.models if args.forms and name not in before['cells']]
    if missing:
        script.parser.error(f'{script.out} lacks {", ".join(missing)}. Leave out --forms.')
    report: dict[str, Any] = {}
    for name, case in itertools.product(args.models, CASES):
        print(f'{name}, {case}', flush=True)
        names = {'eager', *(args.forms or all_forms())}
        slow = bool(args.forms) or name in args.slow
        cell = measure(name, case, names, args.seconds, slow, not args.no_memory)
        for form, reason in cell['left_out'].items():
            print(f'Left out: {form}, {reason}.')
        if args.forms:
            old = before['cells'][name][case]
            if usable(cell):
                cell = merge(old, cell, args.forms)
            else:
                print('The control is out of its band; the file keeps its figures.')
                cell = old
        report.setdefault(name, {})[case] = cell
    print(report_table(report))
    print(sentence(report))
    report = before['cells'] | report
    order = dict.fromkeys((*MODELS, *report))
    script.save({name: report[name] for name in order if name in report}, before['runs'])


if __name__ == '__main__':
    main()
