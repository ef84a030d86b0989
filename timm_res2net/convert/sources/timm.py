"""State dicts of timm and of this package, which share the authors' keys.

They are recognised by their SE modules or an HRNet's branches, which no network of the authors'
code has.
"""

from collections.abc import Collection

from ...keys import is_branch
from ..engine import Rule
from ..source import Published, Source
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


def _file(name: str, top1: str, registered: str) -> Published:
    """Describe the repository on the Hub whose weights an SE model starts from."""
    return Published(
        f'timm/{name}.in1k',
        f'{top1} % top-1',
        figure_source='timm results-imagenet.csv',
        license='unknown',
        license_source="timm's model cards. The authors' README licenses the code only",
        by='timm',
        url=f'https://huggingface.co/timm/{name}.in1k',
        registered=(f'{registered}.se_identity_in1k',),
    )


SOURCE = Source(
    name='timm',
    mark=r'layer1\.0\.se\.fc1\.weight|stage4\.\d+\.branches\..*',
    rules=_rules,
    semantics=OFFICIAL.semantics,
    license='The weights belong to the person who trained them.',
    has_se=True,
    published=(
        _file('res2net50_48w_2s', '77.514', 'res2net50_48w_2s_se'),
        _file('res2net50_26w_4s', '77.950', 'res2net50_se'),
        _file('res2net50_14w_8s', '78.158', 'res2net50_14w_8s_se'),
        _file('res2net50_26w_6s', '78.568', 'res2net50_26w_6s_se'),
        _file('res2net50_26w_8s', '78.942', 'res2net50_26w_8s_se'),
        _file('res2net101_26w_4s', '79.202', 'res2net101_se'),
        _file('res2next50', '78.242', 'res2next50_se'),
        _file('res2net50d', '80.254', 'res2net50d_se'),
        _file('res2net101d', '81.224', 'res2net101d_se'),
    ),
)
