"""State dicts of timm and of this package, which share the authors' keys.

They are recognised by their SE modules or an HRNet's branches, which no network of the authors'
code has.
"""

from collections.abc import Collection

from ..engine import Rule
from ..keys import is_branch
from ..source import Source
from .official import SOURCE as OFFICIAL
from .official import official_rules

# The parts of an HRNet. A pose network's own `final_layer.weight` is not among them.
_HRNET_RULES = tuple(
    Rule(pattern, pattern)
    for pattern in (
        'conv{i}.weight', 'bn{i}.*', 'layer1.**', 'transition{i}.**', 'stage{i}.**',
        'incre_modules.**', 'downsamp_modules.**', 'final_layer.{i}.*', 'classifier.*',
    )
)  # fmt: skip


def _rules(keys: Collection[str]) -> tuple[Rule, ...]:
    return _HRNET_RULES if any(map(is_branch, keys)) else official_rules(keys)


SOURCE = Source(
    name='timm',
    mark=r'layer1\.0\.se\.fc1\.weight|stage4\.\d+\.branches\..*',
    rules=_rules,
    semantics=OFFICIAL.semantics,
    license='The weights belong to the person who trained them.',
    has_se=True,
)
