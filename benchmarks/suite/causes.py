"""The extra time of a subject by cause, computed from what `attribution` measured."""

import statistics
from collections.abc import Mapping
from typing import Any

from .attribution import KINDS

SPLITTING = ('convolutions in place', 'concat/split/copy', 'add', 'norm+activation', 'pool')
"""Work that splitting a block adds: more operations, or operations on smaller tensors."""
CAUSES = (
    'extra', 'more MACs', 'less efficient convolutions', 'the splitting itself', *SPLITTING,
    'attention', 'other', 'unexplained',
)  # fmt: skip
"""Keys of `explain`, in the order of the tables."""


def explain(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the subject's extra time by cause, as shares of the baseline's time.

    Let T be the time of a step, C the sum of the convolutions timed alone, M their MACs and P the
    profiler's self time. Then
        extra = T_s - T_b;
        more MACs = C_b (M_s / M_b - 1), the cost of the MACs at the baseline's efficiency;
        less efficient convolutions = C_s - C_b M_s / M_b;
        convolutions in place = the difference of P - C of the convolutions, which is what they lose
        within the network, because there the input is a slice and not a whole tensor;
        every other kind = P_s - P_b;
        the splitting itself = the sum over `SPLITTING`;
        unexplained = the rest of `extra`.

    Args:
        found: Result of `attribution.attribute`.
    """
    time, alone, macs, inside = {}, {}, {}, {}
    kinds: dict[str, dict[str, float]] = {}
    for role in ('baseline', 'subject'):
        time[role] = statistics.median(found['seconds'][role])
        layers = found['alone'][role]
        rounds = zip(*(layer['seconds'] for layer in layers), strict=True)
        sums = [
            sum(layer['count'] * t for layer, t in zip(layers, row, strict=True)) for row in rounds
        ]
        alone[role] = statistics.median(sums) if sums else 0.0
        macs[role] = sum(layer['count'] * layer['macs'] for layer in layers)
        kinds[role] = {k: statistics.median(v) for k, v in found['profile'][role].items()}
        inside[role] = sum(v for k, v in kinds[role].items() if k.startswith('convolution'))
    more = macs['subject'] / macs['baseline'] if macs['baseline'] else 1.0
    parts = {
        'more MACs': alone['baseline'] * (more - 1),
        'less efficient convolutions': alone['subject'] - alone['baseline'] * more,
        'convolutions in place': (inside['subject'] - alone['subject'])
        - (inside['baseline'] - alone['baseline']),
    }
    for kind in KINDS:
        if not kind.startswith('convolution'):
            parts[kind] = kinds['subject'][kind] - kinds['baseline'][kind]
    extra = time['subject'] - time['baseline']
    parts['unexplained'] = extra - sum(parts.values())
    splitting = sum(parts[kind] for kind in SPLITTING)
    whole = {'extra': extra, **parts, 'the splitting itself': splitting}
    return {cause: whole[cause] / time['baseline'] for cause in CAUSES}
