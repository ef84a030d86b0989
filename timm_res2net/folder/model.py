"""The one value: a model in memory, and what is known of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..convert.engine import Move
from ..layers.text import list_some
from .config import Config


@dataclass(frozen=True)
class Notes:
    """What is known of the file that a model was read from.

    Attributes:
        file: Name of the file, or of the folder that it is in; '' for a model in memory.
        sha256: Its sha256.
        format: How it was read, such as 'torch' or 'safetensors'.
        entry: Entry of the file that held the weights; '' if the file itself did.
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


def described(
    model: Model,
    there: Config | None,
    license: str | None,
    label_names: Sequence[str] | None,
    remote_code: bool | None,
    data: Mapping[str, Any] | None,
) -> tuple[Model, list[str]]:
    """Return a model with what its owner says of it, as `Config.as_asked`, and notes for the owner.

    What the owner leaves open stays as the config that it replaces has it, if there is one, as far
    as it fits.
    """
    config, read, notes = model.config, model.notes, []
    if read.entry:
        notes.append(f"The weights are those of the entry '{read.entry}'.")
    if read.left_out:
        notes.append(
            f"The Res2Net has the prefix '{read.prefix}' in the file. Other tensors were left out, "
            f'{list_some(read.left_out)}.'
        )
    labels = there.label_names if there else None
    if label_names is None and isinstance(labels, list) and not config.label_names:
        if len(labels) == config.num_classes:
            label_names = labels
            notes.append('The names of the classes are those that the Hub had.')
        else:
            notes.append('The Hub had names for another number of classes; they were removed.')
    if remote_code is None and there and there.remote_code and not config.remote_code:
        remote_code = True
        notes.append('The module for transformers stays, as the Hub has it.')
    config = config.as_asked(model.net, license, label_names, remote_code, data=data)
    return replace(model, config=config), notes
