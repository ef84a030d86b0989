"""A model as a folder: config.json, weights and card, as timm, transformers and the Hub read it."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..convert.files import read_checkpoint
from ..files import new_folder, read_text
from ..layers.text import first_line, list_some, sentence
from ..models.loading import WEIGHT_FILES, fill
from .config import CONFIG, MODULE, Config
from .golden import GOLDEN, compare_golden, golden_tensors
from .model import Model

WEIGHTS, PICKLE = WEIGHT_FILES
CARD = 'README.md'
FILES = (WEIGHTS, CONFIG, CARD, GOLDEN, MODULE)
"""The files of a model that are fetched, pulled and pushed, as far as they exist."""

MOST_PARAMETERS = 500_000_000
"""The most parameters of a network that a config.json may describe: 2 GB in float32, and 6 times
the largest published."""

# --- the module for transformers ----------------------------------------------------------------

INSTALL = (
    'It is not on a package index yet: install it from a clone of its repository, with '
    '`pip install .`.'
)
"""How this package is installed, for cards and errors."""

# transformers builds models by their names in timm, and importing this package registers its own.
# timm ignores the module, and so does transformers without `trust_remote_code`.
# transformers looks for missing packages outside of `try` only, and would name them as packages of
# the index. It writes to the classes that it loads, so they must not be its own; their names must
# be, because its pipelines look for them.
MODULE_TEXT = f'''"""Loads this model in transformers: timm_res2net registers its network with timm.

timm_res2net wrote this file, and it is the same in every repository.
"""

import transformers

try:
    import timm_res2net  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'timm_res2net':
        raise
    raise ImportError(
        'The network of this model is in the package timm_res2net, which is not installed. '
        {INSTALL!r}
    ) from error


class TimmWrapperModel(transformers.TimmWrapperModel):
    """The network without its classifier."""


class TimmWrapperForImageClassification(transformers.TimmWrapperForImageClassification):
    """The network with its classifier."""
'''
"""The text of the module."""


def is_module(path: Path) -> bool:
    """Return whether a file is the module, as this version of the package writes it."""
    return path.is_file() and path.read_bytes() == MODULE_TEXT.encode()


# --- the folder -----------------------------------------------------------------------------------


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write safetensors. The same tensors give the same bytes."""
    # copies, since safetensors refuses tensors that share memory
    whole = {key: value.clone().contiguous() for key, value in tensors.items()}
    save_file(whole, path, metadata={'format': 'pt'})  # transformers asks for the format
    path.chmod(0o644)  # safetensors lets only the owner read it


@dataclass(frozen=True)
class ModelFolder:
    """A model on the disk. Its files are read when they are asked for, and the config once.

    Attributes:
        path: The folder.
        repo: Repository that its files come from, OWNER/NAME; '' for none.
        offline: Why the Hub was not asked for the repository; '' if it was.
        pickles: Weights of other formats in the repository.
        original: The network that it was written from; None if nobody knows.
    """

    path: Path
    repo: str = ''
    offline: str = ''
    pickles: tuple[str, ...] = ()
    original: nn.Module | None = None

    @functools.cached_property
    def config(self) -> Config:
        """The config; errors as in `Config.read`."""
        return Config.read(self.path / CONFIG)

    @functools.cached_property
    def net(self) -> nn.Module:
        """The network in eval mode; errors as in `load`."""
        return self.load().eval()

    @property
    def weights(self) -> Path:
        """The file with the weights: safetensors, else the pickle that older libraries wrote.

        Raises:
            FileNotFoundError: There is neither.
        """
        for name in WEIGHT_FILES:
            if (self.path / name).is_file():
                return self.path / name
        raise FileNotFoundError(
            f'{self.path} has no {WEIGHTS}. Give a checkpoint file, or a folder that '
            '`timm-res2net convert` or timm wrote.'
        )

    @property
    def card(self) -> str:
        """The text of README.md, '' if there is none."""
        path = self.path / CARD
        return read_text(path) if path.is_file() else ''

    def build(self) -> nn.Module:
        """Build the config's model on the meta device, without weights.

        Raises:
            FileNotFoundError: There is no config.
            ValueError: The config does not describe a model.
        """
        what = f'{self.path / CONFIG} does not describe a model'
        _ = self.config  # its errors are the clearer ones
        try:
            model = timm.create_model(f'local-dir:{self.path}', device='meta')
        except Exception as error:  # what others wrote fails anywhere inside timm
            raise ValueError(
                sentence(f'{what}: {type(error).__name__}: {first_line(error)}')
            ) from error
        count = sum(p.numel() for p in model.parameters())
        if count > MOST_PARAMETERS:
            raise ValueError(
                f'{what} of at most {MOST_PARAMETERS:,} parameters, but one of {count:,}.'
            )
        return model

    @functools.cached_property
    def fitting(self) -> int:
        """The number of tensors of the weights, all of which fit the config.

        Names, shapes and types are compared once, without reading the weights into memory. timm
        does not report missing weights if it creates a model with `features_only` or other classes.

        Raises:
            FileNotFoundError: There is no config, or there are no weights.
            ValueError: Names or shapes are not those of the config's model, or weights are not
                floating-point numbers.
        """
        model, weights = self.build(), self.weights
        floating = {key for key, t in model.state_dict().items() if t.is_floating_point()}
        try:
            if weights.name == PICKLE:
                tensors = read_checkpoint(weights).tensors
                odd = []
            else:
                with safe_open(weights, framework='pt') as file:
                    parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                    # torch would load other types all the same, and drop imaginary parts
                    odd = [k for k in floating & parts.keys() if 'F' not in parts[k].get_dtype()]
                    tensors = {
                        key: torch.empty(part.get_shape(), device='meta')
                        for key, part in parts.items()
                    }
            fill(model, tensors)
        except SafetensorError as error:
            raise ValueError(
                f'{weights} is damaged ({error}). Download or write it again.'
            ) from error
        except ValueError as error:
            raise ValueError(
                f'Config and weights of {self.path} are of different models: '
                f'{sentence(str(error))} Write the folder again from the model.'
            ) from error
        if odd:
            raise ValueError(
                f'{weights} holds weights that are not floating-point numbers, {list_some(odd)}. '
                'Save them as float32.'
            )
        return len(tensors)

    def compare_golden(self, net: nn.Module) -> dict[str, float]:
        """Compare a network with the golden tensors, as `golden.compare_golden`; {} without any."""
        if not (self.path / GOLDEN).is_file():
            return {}
        dtype = torch.float32
        if self.weights.name == WEIGHTS:
            with safe_open(self.weights, framework='pt') as file:
                kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
            dtype = torch.float16 if 'F16' in kinds else dtype
            dtype = torch.bfloat16 if 'BF16' in kinds else dtype
        return compare_golden(net, self.path / GOLDEN, dtype)

    def load(self, pretrained: bool = True, **kwargs: Any) -> nn.Module:
        """Create the model with timm.

        Args:
            pretrained: Load the weights.
            **kwargs: Further arguments of `timm.create_model`.

        Raises:
            FileNotFoundError: There is no config, or there are no weights.
            ValueError: The config does not describe a model, or not that of the weights.
        """
        if pretrained:
            _ = self.fitting  # its errors are the clearer ones
            if self.weights.name == PICKLE:  # timm knows fewer of its entries
                tensors = read_checkpoint(self.weights).tensors
                overlay = kwargs.pop('pretrained_cfg_overlay', None) or {}
                kwargs['pretrained_cfg_overlay'] = {'source': '', 'state_dict': tensors, **overlay}
        else:
            self.build()  # counts the parameters before memory is taken for them
        model: Any = timm.create_model(f'local-dir:{self.path}', pretrained, **kwargs)
        model.pretrained_cfg.pop('state_dict', None)  # it keeps the tensors alive
        if self.config.problem_type:
            model.pretrained_cfg['problem_type'] = self.config.problem_type
        return model


def write(model: Model, path: Path) -> ModelFolder:
    """Write a model as a new folder: all of it, or nothing. The same model gives the same weights.

    Golden tensors are written if the model can be run. Their last bits depend on the machine.

    Args:
        model: The model.
        path: New or empty folder.
    """
    with new_folder(path) as made:
        (made / CONFIG).write_text(model.config.to_json(), encoding='utf-8')
        _save(model.net.state_dict(), made / WEIGHTS)
        golden = golden_tensors(model.net, model.config.input_size)
        if golden:
            (made / GOLDEN).parent.mkdir()
            _save(golden, made / GOLDEN)
        if model.config.remote_code:
            (made / MODULE).write_text(MODULE_TEXT, encoding='utf-8')
        if model.card:
            (made / CARD).write_text(model.card, encoding='utf-8')
    return ModelFolder(path, original=model.net)
