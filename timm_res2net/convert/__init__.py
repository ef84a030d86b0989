"""Read checkpoints of other projects as state dicts under timm's keys, and write them back.

Nothing here knows a model: a state dict goes in, a state dict comes out. See README.md.
"""

from .engine import Converted as Converted
from .engine import Move as Move
from .engine import Rule as Rule
from .engine import apply_rules as apply_rules
from .engine import undo_rules as undo_rules
from .files import Checkpoint as Checkpoint
from .files import read_checkpoint as read_checkpoint
from .find import Network as Network
from .find import convert_network as convert_network
from .find import explain_missing_stem as explain_missing_stem
from .find import find_network as find_network
from .find import look_like_classifiers as look_like_classifiers
from .infer import infer_arguments as infer_arguments
from .pickles import dump_arrays as dump_arrays
from .published import licenses_table as licenses_table
from .published import published_table as published_table
from .source import Source as Source
from .sources import SOURCES as SOURCES
from .sources import recognise as recognise
