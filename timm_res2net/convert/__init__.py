"""Checkpoints of other projects, as state dicts under timm's names.

State dict in, state dict out: nothing here knows a model. A source is a table of `Rule`s;
`apply_rules` applies any table, `undo_rules` goes back, and both fail naming what no rule takes;
`files` reads a file without running anything in it; `infer` reads a network's arguments off its
shapes.
"""

from .engine import Converted as Converted
from .engine import Move as Move
from .engine import Rule as Rule
from .engine import apply_rules as apply_rules
from .engine import require_keys as require_keys
from .engine import undo_rules as undo_rules
from .infer import infer_arguments as infer_arguments
from .reading import Checkpoint as Checkpoint
from .reading import read_checkpoint as read_checkpoint
from .reading import read_pdparams as read_pdparams
from .safe_pickle import dump_arrays as dump_arrays
from .sources import SOURCES as SOURCES
from .sources import Source as Source
from .sources import recognise as recognise
from .sources.paddle import paddle_rules as paddle_rules
