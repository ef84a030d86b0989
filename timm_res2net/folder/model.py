"""The one value: a model in memory, and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..convert.engine import Move
from .config import Config


@dataclass(frozen=True)
class Notes:
    """What is known of the file that a model was read from.

    Attributes:
        file: Name of the file, or of the folder that it is in; '' for a model in memory.
        sha256: Its sha256.
        format: How it was read, such as 'torch' or 'safetensors'.
        entry: Entry of the file that held the weights; '' if the file itself did.
        widened: Number of tensors that were widened to float32.
        source: Project whose keys it has, one of `timm_res2net.convert.sources.SOURCES`.
        prefix: What the network's keys start with in the file, such as 'backbone.'; '' if the file
            holds nothing else.
        left_out: Keys in the file that are not the network's.
        others: Further entries of the file that hold weights, such as 'ema.module'.
        classifiers: Keys in `left_out` that look like a classifier, if the model has none.
        moved: For each key of the network in the file its key in timm, and the rule.
        has_steps: Whether the optimizer made a step, as far as timm's train.py recorded it.
        differences: Relative differences by output from the original code's; empty if not compared.
    """

    file: str = ''
    sha256: str = ''
    format: str = ''
    entry: str = ''
    widened: int = 0
    source: str = 'timm'
    prefix: str = ''
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = ()
    moved: tuple[Move, ...] = ()
    has_steps: bool = True
    differences: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model in memory.

    Attributes:
        net: The network in eval mode, with its weights.
        config: Its config.
        card: Its owner's Markdown; '' without any.
        notes: What is known of the file that it was read from.
    """

    net: nn.Module
    config: Config
    card: str = ''
    notes: Notes = Notes()
