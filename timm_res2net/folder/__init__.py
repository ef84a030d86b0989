"""A model, what is known of it, and its files; and the conversion of checkpoints to a folder."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..convert.sources import SOURCES
from ..files import check_writable, write_file
from .back import back
from .card import with_card
from .checks import check_values
from .folder import write
from .golden import compare_outputs
from .model import Model
from .take import take

__all__ = ['Model', 'convert_checkpoint']


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    source: str = 'auto',
    to: str = 'timm',
    model: str | None = None,
    semantics: str | None = None,
    entry: str | None = None,
    prefix: str | None = None,
    rename: Mapping[str, str] | None = None,
    license: str | None = None,
    label_names: Sequence[str] | None = None,
    remote_code: bool | None = None,
    multi_label: bool | None = None,
    data: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    compare: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> Model:
    """Convert a Res2Net checkpoint of another project to timm, or one of timm to another project.

    The file is not trusted: no code in it is run. It may hold a larger model: the Res2Net is the
    keys under one prefix, and the other keys are left out and reported. Either every tensor of the
    Res2Net is mapped and every parameter is filled, or nothing is written.

    Args:
        path: A file (.pth, .pdparams, .pkl, .safetensors; the content decides) or a folder that
            this function or timm wrote.
        out: What to write; nothing if None. For `to='timm'` a new or empty folder, which gets
            `config.json`, `model.safetensors` and `README.md` and loads with
            `timm.create_model('local-dir:OUT', pretrained=True)`; otherwise a new file.
        source: Project whose keys the file has, one of
            `timm_res2net.convert.sources.SOURCES`; 'auto' recognises it by its keys.
        to: Project whose keys are written.
        model: Name of the model, of this package or timm's own. By default it is the model whose
            arguments the shapes tell.
        semantics: Block semantics. This or `model` is needed if the keys do not tell them: for a
            state dict under timm's names with other semantics than `official`.
        entry: Entry of the file that holds the weights, such as 'state_dict' or 'ema.module'; for
            the default see `timm_res2net.convert.files.read_checkpoint`.
        prefix: What the Res2Net's keys start with in the file, such as 'backbone.'. It is needed if
            the file holds several Res2Nets, such as a student and its teacher.
        rename: Timm's names by those in the file, if a model has the stages or the stem under
            other names: `{'encoder1': 'layer1'}` renames the keys that start with 'encoder1.'.
        license: Identifier of the license of the weights, such as 'apache-2.0', for the config and
            the card. Only for `to='timm'`.
        label_names: Names of the classes, in order, for the config. Only for `to='timm'`.
        remote_code: Write the module with which transformers loads the folder, as in
            `push_to_hub`; None for what a folder that is read has. Only for `to='timm'`.
        multi_label: Whether an image may be of several classes, so that `predict` and the card use
            a sigmoid; None for what a folder that is read has. Only for `to='timm'`.
        data: How images are prepared, as in `push_to_hub`; by default as the folder or train.py's
            arguments say, or else assumed as for the architecture, which `check` warns of. Only for
            `to='timm'`.
        dry_run: Check everything, `out` included, and write nothing.
        compare: Files with a batch and with the outputs that the original code gave for it, see
            `timm_res2net.folder.golden.compare_outputs`. If the model gives others, nothing is
            written.

    Returns:
        The model that was read.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `out` already exists.
        ValueError: The file cannot be read safely, is of no known source, holds several Res2Nets,
            or does not fit; keys without a rule, parameters without a value and
            shapes that do not fit are listed. Weights are not finite, a variance is negative, or
            outputs differ from those of `compare` or of a folder's golden tensors. Or the project
            of `to` cannot express the network, or the license or the label names.

    Example:
        >>> import tempfile, timm, torch, timm_res2net
        >>> folder = tempfile.mkdtemp()
        >>> net = timm.create_model('test_res2net_se', num_classes=5)
        >>> torch.save(net.state_dict(), f'{folder}/theirs.pth')
        >>> model = timm_res2net.convert_checkpoint(f'{folder}/theirs.pth', f'{folder}/mine')
        >>> model.config.architecture, model.config.semantics, model.config.num_classes
        ('test_res2net_se', 'official', 5)
        >>> net = timm.create_model(f'local-dir:{folder}/mine', pretrained=True)
    """
    if to not in SOURCES:
        raise ValueError(f"Unknown source '{to}' to write. Use one of {', '.join(SOURCES)}.")
    described = (license, label_names, remote_code, multi_label, data)
    if to != 'timm' and any(value is not None for value in described):
        raise ValueError(
            f'A file of {to} cannot hold license, label_names, remote_code, multi_label and data. '
            "Leave them out, or write a folder (to='timm')."
        )
    target = None if out is None else check_writable(Path(out), folder=to == 'timm')
    taken = take(
        path, source=source, model=model, semantics=semantics, entry=entry, prefix=prefix,
        rename=rename,
    )  # fmt: skip
    check_values(taken.net, f'{path} was not converted: ')
    if compare:
        differences = compare_outputs(taken.net, *compare)
        taken = replace(taken, notes=replace(taken.notes, differences=differences))
    config = taken.config.as_asked(taken.net, license, label_names, remote_code, multi_label, data)
    taken = replace(taken, config=config)
    tensors = {} if to == 'timm' else back(taken, to)
    if target is None or dry_run:
        return taken
    if to != 'timm':
        write_file(target, lambda file: SOURCES[to].save(tensors, file), replace=False)
        return taken
    license = taken.config.license
    unknown = (
        f'The converter does not know who published the file. {SOURCES[taken.notes.source].license}'
    )
    if taken.card:
        unknown = 'The model was converted from a folder, whose card may name a license.'
    carded = with_card(
        replace(taken, card=''),
        f'local-dir:{target.name}',
        license=license,
        license_text='' if license else unknown,
    )
    write(carded, target)
    return taken
