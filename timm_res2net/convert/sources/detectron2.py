"""Key rules for Res2Net-detectron2, block semantics `mmdet`."""

from collections.abc import Collection

from ..engine import Rule

__all__ = ['detectron2_rules']

_MARK = 'res2.0.conv1.norm.weight'
_FOUND = 'res{stage+1}.{block}'
_BLOCK = 'layer{stage}.{block}'
_RULES = (
    Rule('stem.conv1.{i}.*', 'conv1.{i}.*'),
    Rule('stem.bn1.*', 'bn1.*'),
    *(
        rule
        for i in (1, 3)
        for rule in (
            Rule(f'{_FOUND}.conv{i}.weight', f'{_BLOCK}.conv{i}.weight'),
            Rule(f'{_FOUND}.conv{i}.norm.*', f'{_BLOCK}.bn{i}.*'),
        )
    ),
    Rule(f'{_FOUND}.convs.{{i}}.weight', f'{_BLOCK}.convs.{{i}}.weight'),
    Rule(f'{_FOUND}.bns.{{i}}.*', f'{_BLOCK}.bns.{{i}}.*'),
    Rule(f'{_FOUND}.shortcut.1.weight', f'{_BLOCK}.downsample.1.weight'),
    Rule(f'{_FOUND}.shortcut.1.norm.*', f'{_BLOCK}.downsample.2.*'),
    # what its converter makes of a classifier's last layer
    Rule('stem.fc.*', 'fc.*'),
)
_HEADS = (
    'pixel_mean', 'pixel_std', 'proposal_generator.**', 'roi_heads.**', 'sem_seg_head.**',
    'backbone.fpn_**', 'backbone.top_block.**',
)  # fmt: skip


def detectron2_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """The table, for a backbone or for a whole detector, whose pyramid and heads go."""
    marks = [key for key in keys if key.endswith(_MARK)]
    prefix = marks[0].removesuffix(_MARK) if marks else ''
    return (
        *(rule._replace(source=prefix + rule.source) for rule in _RULES),
        *(Rule(head, '') for head in _HEADS),
    )
