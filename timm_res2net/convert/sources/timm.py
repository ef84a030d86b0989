"""State dicts of timm and of this package, which share the authors' keys.

They are recognised by their SE modules or an HRNet's branches, which no network of the authors'
code has.
"""

from collections.abc import Iterable

from ..engine import Source, same
from .official import OFFICIAL_RULES
from .official import SOURCE as OFFICIAL

# The parts of an HRNet. A pose network's own `final_layer.weight` is not among them.
_HRNET_RULES = same(
    'conv{i}.weight', 'bn{i}.*', 'layer1.**', 'transition{i}.**', 'stage{i}.**',
    'incre_modules.**', 'downsamp_modules.**', 'final_layer.{i}.*', 'classifier.*',
)  # fmt: skip


def have_branches(keys: Iterable[str]) -> bool:
    """Return whether keys under timm's names are those of an HRNet."""
    return any(key.startswith('stage4.') for key in keys)


SOURCE = Source(
    name='timm',
    mark=r'layer1\.0\.se\.fc1\.weight|stage4\.\d+\.branches\..*',
    rules=lambda keys: _HRNET_RULES if have_branches(keys) else OFFICIAL_RULES,
    semantics=OFFICIAL.semantics,
    license='The weights belong to the person who trained them.',
    has_se=True,
)
