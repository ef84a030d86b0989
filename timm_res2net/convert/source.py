"""The description of a source: a project whose checkpoints can be read and written."""

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

from .engine import Rule


def save_state_dict(tensors: Mapping[str, torch.Tensor], file: IO[bytes]) -> None:
    """Write a bare state dict with `torch.save`."""
    written = io.BytesIO()  # torch's own writer turns an error of `file` into another
    torch.save(dict(tensors), written)
    file.write(written.getbuffer())


def _express_all(arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    return ''


@dataclass(frozen=True, kw_only=True)
class Source:
    """A project whose checkpoints can be read and written.

    Attributes:
        name: Name of the source.
        mark: Regular expression that fully matches a key of this source, and no key of the sources
            that come after it in `SOURCES`.
        first: Regular expression that fully matches one key of every network of this source, the
            first 3x3 convolution of the first block.
        rules: Return the key rules for a network with the given keys. The keys are the source's,
            without the prefix of a larger model, or timm's if a checkpoint is to be written.
        semantics: Block semantics that a checkpoint may have. The first is what the project's own
            code computes.
        license: What is known of the license of the published files, in full sentences.
        has_se: Whether the project's blocks have SE modules.
        counts_batches: Whether its state dicts have `num_batches_tracked`.
        save: Write tensors under the source's keys to an open file.
        limits: Return the reason why the project's code cannot express a network beyond its
            semantics and SE modules; '' if it can. The arguments are those of `refuse`.
    """

    name: str
    mark: str
    rules: Callable[[Collection[str]], tuple[Rule, ...]]
    semantics: tuple[str, ...]
    license: str
    has_se: bool = False
    first: str = r'layer1\.0\.convs\.0\.weight'
    counts_batches: bool = True
    save: Callable[[Mapping[str, torch.Tensor], IO[bytes]], None] = save_state_dict
    limits: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], str] = _express_all

    def refuse(self, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
        """Return the reason why the project's code cannot express a network, or ''.

        Args:
            arguments: Arguments of the network, as `infer_arguments` returns them, and its
                `semantics`.
            tensors: State dict of the network under timm's keys.
        """
        computes = self.semantics[0]
        if arguments['semantics'] != computes:
            return (
                f'its block semantics are {arguments["semantics"]}, and {self.name} computes '
                f'{computes}'
            )
        if arguments['attn_layer'] and not self.has_se:
            return f'it has SE modules, which the blocks of {self.name} do not have'
        return self.limits(arguments, tensors)
