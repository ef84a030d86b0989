"""Peak memory of one step."""

import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .measure import synchronize
from .steps import Work

HOW = {
    'cuda': 'CUDA allocator: memory_allocated before the step, max_memory_allocated after it',
    'cpu': "torch's CPU allocator: every allocation and release of one step as the profiler saw "
    'them, replayed; what oneDNN allocates for itself is not seen',
}
"""How memory is measured, by device; kept in the record."""


def peak_of(changes: Sequence[int]) -> int:
    """Return the largest running sum of allocations (positive) and releases (negative), at least
    0.
    """
    now = peak = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    return peak


def _cpu_changes(step: Callable[[], object]) -> list[int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    found = [e for e in events if e.get('name') == '[memory]' and e['args']['Device Type'] == 0]
    found.sort(key=lambda e: (e['ts'], e['args'].get('Ev Idx', 0)))
    return [event['args']['Bytes'] for event in found]


def measure(work: Work, device: str) -> dict[str, int]:
    """Measure the peak memory of one step, after two for warm-up.

    Returns:
        Bytes: `resident_bytes` for what stays between steps (parameters, buffers, input, optimizer
        state), `beyond_bytes` for the peak beyond that during the step, and `peak_bytes` for the
        sum.
    """
    sync = synchronize(device)
    for _ in range(2):
        work.step()
    sync()
    if device == 'cuda':
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work.step()
        sync()
        beyond = torch.cuda.max_memory_allocated() - before
    else:
        beyond = peak_of(_cpu_changes(work.step))
    resident = sum(tensor.numel() * tensor.element_size() for tensor in work.held())
    return {
        'resident_bytes': resident,
        'beyond_bytes': beyond,
        'peak_bytes': resident + beyond,
    }
