"""Checkpoints of other projects, as state dicts under timm's names.

State dict in, state dict out: nothing here knows a model. A source is a table of `Rule`s;
`apply_rules` applies any table and fails naming what no rule takes; `files` reads a file without
running anything in it.
"""

from .engine import Rule as Rule
from .engine import apply_rules as apply_rules
from .engine import require_keys as require_keys
from .files import read_pdparams as read_pdparams
from .paddle import paddle_rules as paddle_rules
