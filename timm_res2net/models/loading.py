"""Pretrained weights of the registered models: fetching, converting and checking them.

The Hub is asked once, files of PaddleClas and MindCV are converted in memory, gates that a file
does not have start at the identity, and a file that would fill only part of a network is refused.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import HfApi, ModelInfo, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from timm.layers import SEModule
from timm.models import load_pretrained
from torch import nn

from ..convert import FILES
from ..convert.engine import COUNTER
from ..convert.files import read_checkpoint
from ..convert.find import convert_network, find_network
from ..convert.sources import SOURCES
from ..layers.bottle2neck import Bottle2neck
from ..layers.text import first_line, list_some, sentence

# --- the Hub and URLs -----------------------------------------------------------------------------

WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')
"""Files of weights, of which the first that exists is read: safetensors, and the pickle that timm
and transformers wrote before."""

NOT_CACHED = (
    " The cache does not have it either. Without a network, 'test_res2net_se' and local "
    'folders load.'
)
"""Appended to the error of an unreachable Hub if the cache has no copy."""


def ask_hub(repo: str, revision: str | None = None, token: str | bool | None = None) -> ModelInfo:
    """Ask the Hub what a repository holds, with the hash of each file.

    Args:
        repo: OWNER/NAME.
        revision: Branch, tag or commit; None for main.
        token: Access token.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses.
        ConnectionError: The Hub cannot be reached, or HF_HUB_OFFLINE is set.
    """
    timeout = constants.HF_HUB_ETAG_TIMEOUT  # by default the client waits without end
    try:
        return HfApi(token=token).model_info(
            repo, revision=revision, files_metadata=True, timeout=timeout
        )
    except HfHubHTTPError:
        raise
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f'HF_HUB_OFFLINE is set, so the Hub was not asked for {repo}. Unset it to ask the Hub.'
        ) from error
    except (ConnectionError, HTTPError) as error:
        raise ConnectionError(
            f'The Hub cannot be reached for {repo} ({type(error).__name__}: {first_line(error)}). '
            'Check the network.'
        ) from error


def prepare_weights(cfg: Any, cache_dir: str | Path | None = None) -> None:
    """Make sure that timm can load the weights of a cfg, or fail within seconds.

    The Hub is asked once for weights that the cache does not have: its client tries for a minute or
    longer. Weights at a URL are downloaded to where timm looks for them.

    Args:
        cfg: The `PretrainedCfg`.
        cache_dir: The cache, if it is not the usual one.

    Raises:
        FileNotFoundError: The cfg names a file that does not exist.
        OSError: A server cannot be reached, or a download failed or has another hash than the one
            in the name of the published file.
    """
    is_local = cfg.source == 'local-dir' or cfg.file or cfg.state_dict
    if cfg.file and not os.path.exists(cfg.file):
        raise FileNotFoundError(f'There is no file or folder {cfg.file}. Check the path.')
    if cfg.hf_hub_id and (cfg.source == 'hf-hub' or not is_local):
        repo, _, revision = cfg.hf_hub_id.partition('@')
        files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else WEIGHT_FILES
        cached = (try_to_load_from_cache(repo, f, cache_dir, revision or None) for f in files)
        if any(isinstance(path, str) for path in cached):
            return
        try:
            ask_hub(repo, revision or None)
        except HfHubHTTPError:
            return  # the download raises it again
        except ConnectionError as error:
            raise ConnectionError(f'{error}{NOT_CACHED}') from error
    elif isinstance(cfg.url, str) and cfg.url and not is_local:
        folder = Path(cache_dir or os.path.join(torch.hub.get_dir(), 'checkpoints'))
        path = folder / os.path.basename(urlsplit(cfg.url).path)
        if path.exists():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            prefix = next((file.hash for file in FILES if file.url == cfg.url), '')
            torch.hub.download_url_to_file(cfg.url, str(path), prefix or None)
        except (OSError, RuntimeError) as error:  # torch's error for another hash
            raise OSError(
                f'Cannot download {cfg.url} ({type(error).__name__}: {first_line(error)}). Run '
                'again, or make a folder of a copy with `timm-res2net convert FILE --out FOLDER`. '
                "In Python, pretrained_cfg_overlay=dict(file='PATH') loads the copy."
            ) from error


# --- files of other frameworks --------------------------------------------------------------------


def load_foreign(model: Any, path: str, prefix: str = '') -> None:
    """Load a file of PaddleClas (.pdparams) or MindCV (.ckpt), as timm loads pretrained weights.

    New heads, other input channels and `features_only` work as with any weights of timm.

    Args:
        model: Res2Net with a `pretrained_cfg`.
        path: File to read. It may be untrusted: no code in it is run.
        prefix: No effect. timm's signature has it.

    Raises:
        RuntimeError: The file cannot be read or does not fit the model. An unreadable download is
            renamed to `<name>.broken`, so that the next call downloads the file again.
    """
    cfg = model.pretrained_cfg
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        kept = ''
        if not cfg.get('file'):  # torch compares no length: a download may be cut short
            os.replace(path, f'{path}.broken')
            kept = f' The download is kept as {path}.broken. Run again to download it again.'
        raise RuntimeError(f'{error}{kept}') from error
    try:
        network = find_network(checkpoint.values)
        state_dict, _ = convert_network(checkpoint, network)
        known, computes = SOURCES[network.source].semantics, model.model_args['semantics']
        if computes not in known:
            raise ValueError(
                f'its block semantics are {known[0]}, and the model computes {computes}'
            )
        # timm ignores other weights too if it replaces the head
        surplus = {k for k in state_dict if not is_head(k)} - model.state_dict().keys()
        if surplus:
            raise ValueError(f'the model does not have its weights, {list_some(surplus)}')
    except ValueError as error:
        raise RuntimeError(
            f'{path} does not fit: {sentence(str(error))} Create the model with the layers, scale, '
            'stem and semantics of the checkpoint, or make a folder of it with `timm-res2net '
            'convert`.'
        ) from error
    load_pretrained(
        model,
        dict(cfg, state_dict=state_dict),
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        filter_fn=checkpoint_filter_fn,
    )


# --- what a checkpoint must hold ------------------------------------------------------------------


GATE = '.se.'
"""A part of each key of a block's attention layer."""


def is_head(key: str) -> bool:
    """Return whether a key belongs to the classifier, which timm replaces for other classes."""
    return key.startswith(('fc.', 'classifier.'))  # of a ResNet, of an HRNet


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor], model: Any
) -> dict[str, torch.Tensor]:
    """Start the squeeze-and-excitation gates at the identity if a checkpoint has none.

    A checkpoint that would fill only part of the network is refused.

    With the weight and bias of fc2 at zero, a gate is sigmoid(0) = 1/2 for every input, and a
    doubled bn3 compensates for it. Both are powers of two, so the outputs equal those of the plain
    network bit for bit, in training mode too, and the slope of the gates is at its largest. A state
    dict that has gates is returned unchanged.

    Args:
        state_dict: Checkpoint with timm's names. It is not changed.
        model: Model that will load it.

    Returns:
        The state dict to load.

    Raises:
        RuntimeError: The checkpoint lacks weights of the body, or attention weights that only the
            model or only the checkpoint has, except all of SE's. timm does not report them when it
            loads with strict=False, for example with `features_only`. Or it lacks the classifier
            of a model that keeps the classes of its cfg.
    """
    own = model.state_dict()
    lacking = own.keys() - state_dict.keys()
    missing = {k for k in lacking if not (is_head(k) or GATE in k or k.endswith(COUNTER))}
    if missing:
        raise RuntimeError(
            f'The checkpoint lacks weights of the network ({list_some(missing)}), and has others '
            f'({list_some(state_dict.keys() - own.keys())}). Give the whole checkpoint, and create '
            'the model with the layers and the scale of the checkpoint. If the keys are those of '
            'another project, `timm-res2net convert FILE --out FOLDER` makes a folder of it, which '
            "loads with timm.create_model('local-dir:FOLDER', pretrained=True)."
        )
    is_headless = any(map(is_head, own)) and not any(map(is_head, state_dict))
    if is_headless and model.num_classes == model.pretrained_cfg['num_classes']:
        raise RuntimeError(
            'The checkpoint has no classifier. Create the model with num_classes=0, or with the '
            'number of your classes for a new one.'
        )
    gates, given = ({key for key in keys if GATE in key} for keys in (own, state_dict))
    if given - gates:
        raise RuntimeError(
            'The checkpoint has attention weights that the model does not have, '
            f"{list_some(given - gates)}. Create the model with the checkpoint's attn_layer."
        )
    out = dict(state_dict)
    for name, block in () if given else model.named_modules():
        if not (isinstance(block, Bottle2neck) and isinstance(block.se, SEModule)):
            continue
        if float(block.se.gate(torch.zeros(()))) != 0.5:
            continue
        for key in gates:
            if key.startswith(f'{name}.se.'):
                out[key] = torch.zeros_like(own[key]) if '.fc2.' in key else own[key]
        for key in (f'{name}.bn3.weight', f'{name}.bn3.bias'):
            out[key] = state_dict[key] * 2
    missing = gates - out.keys()
    if missing:
        raise RuntimeError(
            f'The checkpoint has no attention weights of the model, {list_some(missing)}. Only SE '
            "with a sigmoid gate can start from a plain network's checkpoint. Use attn_layer='se', "
            "attn_layer='' for no attention, or pretrained=False."
        )
    return out


def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make a state dict's tensors the parameters and buffers of a model.

    Args:
        model: A model that was built for this, best on the meta device. After an error it is to be
            thrown away.
        tensors: A tensor for each of the model's keys. BatchNorms start those of their counters
            that are missing.

    Raises:
        ValueError: Some are missing, are too many, or have other shapes. The text is a part of a
            sentence, without a full stop.
    """
    try:
        # without the versions in the metadata of a state dict, BatchNorm starts missing counters
        missing, unexpected = model.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:  # it has a line for each tensor
        _, *lines = (line.strip().rstrip('.') for line in str(error).splitlines())
        more = f'; and {len(lines) - 2} more' if len(lines) > 2 else ''
        raise ValueError('; '.join(lines[:2]) + more) from error
    kinds = {
        'parameters without a value': missing,
        'weights that the model does not have': unexpected,
    }
    problem = '; '.join(f'{what}, {list_some(keys)}' for what, keys in kinds.items() if keys)
    if problem:
        raise ValueError(problem)
