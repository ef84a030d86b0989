"""Res2Net for timm: the models that timm lacks.

Papers:
* `Res2Net: A New Multi-scale Backbone Architecture` - https://arxiv.org/abs/1904.01169
* `Squeeze-and-Excitation Networks` - https://arxiv.org/abs/1709.01507
* `Bag of Tricks for Image Classification` - https://arxiv.org/abs/1812.01187 (the d and vd models)

Weights come from the authors' files on the Hugging Face Hub (timm/res2net*) and from PaddleClas;
the first start the squeeze-and-excitation gates of the `_se` models at the identity, the second are
converted as they load.

The file's name is part of its function: timm sorts models by the last part of their module's name,
and `res2net` is timm's own.
"""

import os
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import BlurPool2d, LayerType
from timm.models import build_model_with_cfg, generate_default_cfgs, load_pretrained, register_model
from timm.models.resnet import ResNet
from torch import nn

from ..convert import apply_rules, paddle_rules, read_pdparams, require_keys
from ..layers.align import align_blocks
from ..layers.bottle2neck import AttnLayer, Bottle2neck
from ..text import list_some
from .se_identity import checkpoint_filter_fn

__all__ = ['Res2Net']  # register_model adds every entrypoint to this

_AA_LAYERS = {'avg': nn.AvgPool2d, 'blur': BlurPool2d}
# Arguments that do not change what a trained model computes, or that timm records elsewhere.
_NOT_RECORDED = (
    'self', '__class__', 'num_classes', 'drop_rate', 'drop_path_rate', 'drop_block_rate',
    'zero_init_last', 'device', 'dtype',
)  # fmt: skip


class Res2Net(ResNet):
    """Res2Net: timm's `ResNet` with `Bottle2neck` blocks.

    All that describes the network is a plain argument with a JSON value, so that it can be given to
    `timm.create_model` one by one and survives `timm.models.save_for_hf`.

    Shape:
        - Input: (B, in_chans, H, W)
        - Output: (B, num_classes) logits
        - Features: five levels of strides 2, 4, 8, 16, 32 with channels[0] and 4 * channels[i]
            channels
    """

    __jit_unused_properties__: ClassVar[list[str]] = ['model_args']

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = 'avg',
        cardinality: int = 1,
        base_width: float = 26,
        scale: int = 4,
        semantics: str = 'official',
        attn_layer: AttnLayer = '',
        stem_width: int = 64,
        stem_type: str = '',
        replace_stem_pool: bool = False,
        down_kernel_size: int = 1,
        avg_down: bool = False,
        channels: Sequence[int] = (64, 128, 256, 512),
        act_layer: LayerType = 'relu',
        norm_layer: LayerType = 'batchnorm2d',
        aa_layer: str | type[nn.Module] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_block_rate: float = 0.0,
        zero_init_last: bool = True,
        width_multiple: int = 1,
        device: Any = None,
        dtype: Any = None,
    ):
        """
        Args:
            layers: Blocks of each of the four stages.
            num_classes: Classes of the head; 0 for none.
            in_chans: Channels of the image.
            output_stride: Stride of the last feature level, 32, 16 or 8; below 32, dilation
                replaces stride.
            global_pool: Pooling before the head, one of timm's ('avg', 'max', 'avgmax',
                'catavgmax', '').
            cardinality: Groups of the 3x3 convolutions (Res2NeXt).
            base_width: Channels of a split, per group, in stage 1 at channels[0] = 64.
            scale: Splits of a block.
            semantics: Which published block it is, one of `timm_res2net.bottle2neck.SEMANTICS`.
            attn_layer: Attention in every block: a name ('se', 'eca', 'cbam', ...), a class, or ''
                for none.
            stem_width: Width of a deep stem's first convolutions; its last has twice that. A plain
                stem follows channels[0] and ignores it.
            stem_type: '' for one 7x7 convolution, 'deep' or 'deep_tiered' for three 3x3 ones.
            replace_stem_pool: Replace the stem's max pooling by a convolution with stride 2.
            down_kernel_size: Kernel size of a shortcut's convolution.
            avg_down: Average-pool before a shortcut's convolution, which then has stride 1.
            channels: Planes of the four stages.
            act_layer: Activation, a name or class.
            norm_layer: Normalization, a name or class.
            aa_layer: Anti-aliasing in the stem's pooling: 'avg', 'blur', or a class.
            drop_rate: Dropout before the head.
            drop_path_rate: Stochastic depth of the last block; earlier ones get proportionally
                less.
            drop_block_rate: DropBlock in the last two stages.
            zero_init_last: Start every block as its shortcut.
            width_multiple: Pad the splits with zero channels to a multiple, for the hardware's
                sake (8 for tensor cores). Function, weights and training stay the same.
            device: Device of the parameters, 'meta' included.
            dtype: Data type of the parameters.

        Raises:
            ValueError: A value that cannot be built: what `Bottle2neck` refuses, another number of
                stages than four, an `output_stride` other than 8, 16 or 32, an unknown `aa_layer`,
                an odd channels[0] other than 64 with a plain stem, a `width_multiple` above 1 with
                another norm than BatchNorm2d or with DropBlock.
            TypeError: An unknown argument.
        """
        recorded = {k: v for k, v in locals().items() if k not in _NOT_RECORDED and v is not None}
        for name, value in (('layers', layers), ('channels', channels)):
            entries = value if isinstance(value, Sequence) else ()
            if len(entries) != 4 or not all(isinstance(n, Integral) and n >= 1 for n in entries):
                raise ValueError(
                    f'{name} must have a whole number of at least 1 for each of the four stages, '
                    f'got {value!r}.'
                )
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride!r}.')
        if isinstance(aa_layer, str):
            if aa_layer not in _AA_LAYERS:
                raise ValueError(
                    f'Unknown aa_layer {aa_layer!r}. Use {", ".join(_AA_LAYERS)}, or a class.'
                )
            aa_layer = _AA_LAYERS[aa_layer]
        # timm fixes a plain stem at 64 channels. Another width comes by way of a deep stem, which
        # sets that width for all that follows, and whose convolutions then give way to one 7x7.
        plain_width = channels[0] if stem_type == '' and channels[0] != 64 else 0
        if plain_width % 2:
            raise ValueError(
                f'channels[0]={plain_width} is also the width of the plain stem and must be even.'
            )
        super().__init__(
            Bottle2neck,  # type: ignore[arg-type]  # timm's annotation lists its own two blocks
            tuple(layers),
            num_classes=num_classes,
            in_chans=in_chans,
            output_stride=output_stride,
            global_pool=global_pool,
            cardinality=cardinality,
            base_width=base_width,  # type: ignore[arg-type]  # 64 / 3 is exact in the block
            stem_width=plain_width // 2 if plain_width else stem_width,
            stem_type='deep' if plain_width else stem_type,
            replace_stem_pool=replace_stem_pool,
            down_kernel_size=down_kernel_size,
            avg_down=avg_down,
            channels=tuple(channels),
            act_layer=act_layer,
            norm_layer=norm_layer,
            aa_layer=aa_layer,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            drop_block_rate=drop_block_rate,
            zero_init_last=zero_init_last,
            block_args=dict(scale=scale, semantics=semantics, attn_layer=attn_layer),
            device=device,
            dtype=dtype,
        )
        if plain_width:
            dd = {'device': device, 'dtype': dtype}
            conv1 = nn.Conv2d(in_chans, plain_width, 7, stride=2, padding=3, bias=False, **dd)
            nn.init.kaiming_normal_(conv1.weight, mode='fan_out', nonlinearity='relu')
            self.conv1 = conv1  # type: ignore[assignment]  # a deep stem until here
        align_blocks([m for m in self.modules() if isinstance(m, Bottle2neck)], width_multiple)
        self.in_chans = in_chans  # timm before 1.0.31 does not keep it
        self._recorded_args = recorded

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments that rebuild this network, as they stand now, for `save_for_hf(model, ...,
        model_args=...)`.

        The class count is left out: it has a place of its own in timm's config.
        """
        return dict(self._recorded_args, global_pool=self.global_pool.pool_type)

    @torch.jit.ignore
    def record_args(self, **changed: Any) -> None:
        """Note arguments that were changed after construction, for `model_args`."""
        self._recorded_args.update(changed)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = '') -> None:
        """Load PaddleClas weights (.pdparams); timm calls it for cfgs with `custom_load`.

        Args:
            checkpoint_path: File to read. It may come from anywhere: nothing in it is run.
            prefix: Unused, part of timm's signature.

        Raises:
            RuntimeError: The file cannot be read or does not fit. One that came by URL is renamed
                to `<name>.broken`, so that the next call downloads it afresh.
        """
        cfg: dict[str, Any] = self.pretrained_cfg  # type: ignore[assignment]
        try:
            tensors = read_pdparams(checkpoint_path)
        except ValueError as error:
            if cfg.get('file'):
                raise RuntimeError(str(error)) from error
            broken = f'{checkpoint_path}.broken'
            try:
                os.replace(checkpoint_path, broken)
            except OSError as refusal:
                raise RuntimeError(
                    f'{error} Delete the file, which could not be renamed ({refusal.strerror}), '
                    'and run again to download afresh.'
                ) from error
            raise RuntimeError(
                f'{error} The download is kept as {broken}; run again to download afresh.'
            ) from error
        try:
            state_dict = apply_rules(tensors, paddle_rules(tensors), 'paddle').tensors
            own = self.state_dict()
            inner = [key for key in own if not key.startswith('fc.') and '.se.' not in key]
            require_keys(state_dict, inner, 'paddle')
            surplus = [key for key in state_dict if key not in own and not key.startswith('fc.')]
            if surplus:
                raise ValueError(f'Weights that the model has no place for, {list_some(surplus)}')
        except ValueError as error:
            raise RuntimeError(
                f"{checkpoint_path} does not fit: {error}. Give the model the checkpoint's layers, "
                'scale and stem.'
            ) from error
        load_pretrained(
            self,
            dict(cfg, state_dict=state_dict),
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            filter_fn=checkpoint_filter_fn,
        )


def sorted_indices(out_indices: int | Sequence[int], levels: int = 5) -> tuple[int, ...]:
    """Feature levels as sorted, non-negative indices.

    timm's list, dict, fx and getter classes return features in the network's order while
    `feature_info` keeps the order that was asked for; sorted, all of them agree.
    """
    asked: Any = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
    whole = isinstance(asked, Iterable) and all(isinstance(index, Integral) for index in asked)
    indices = sorted(int(index) % levels for index in asked) if whole else []
    in_range = whole and all(-levels <= index < levels for index in asked)
    if not indices or not in_range or len(set(indices)) < len(indices):
        raise ValueError(
            f'out_indices={out_indices!r} must name different levels from 0 to {levels - 1} '
            f'(or -{levels} to -1), or be the number of last levels, 1 to {levels}.'
        )
    return tuple(indices)


def _create_res2net(variant: str, pretrained: bool = False, **kwargs: Any) -> Res2Net:
    if 'block_args' in kwargs:
        raise TypeError(
            "Res2Net takes no 'block_args': pass scale, attn_layer and semantics by themselves."
        )
    if kwargs.get('features_only') and 'out_indices' in kwargs:
        kwargs['out_indices'] = sorted_indices(kwargs['out_indices'])
    return build_model_with_cfg(
        Res2Net, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs
    )


def _cfg(url: str = '', **kwargs: Any) -> dict[str, Any]:
    return {
        'url': url,
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1', 'classifier': 'fc',
        'license': 'apache-2.0',
        'origin_url': 'https://github.com/Res2Net/Res2Net-PretrainedModels',
        'paper_name': 'Res2Net: A New Multi-scale Backbone Architecture',
        'paper_ids': 'arXiv:1904.01169',
        **kwargs,
    }  # fmt: skip


def _ucfg(description: str, **kwargs: Any) -> dict[str, Any]:
    """Cfg of a model for which no weights can be fetched, so that there is no licence either."""
    return _cfg(description=description, license=None, **kwargs)


def _icfg(source: str, **kwargs: Any) -> dict[str, Any]:
    """Cfg of an SE model that starts from a plain network's weights on the Hub, named in full."""
    return _cfg(
        hf_hub_id=f'timm/{source}',
        license='unknown',
        description=f'Weights of timm/{source} with squeeze-and-excitation gates at the identity.',
        notes=(
            f'Computes what timm/{source} computes, bit for bit: its gates are not trained yet.',
            "The weights are the Res2Net authors'. Their README has said CC BY-NC-SA 4.0 since "
            "2021, timm's model card says unknown.",
        ),
        **kwargs,
    )


def _pcfg(file: str, **kwargs: Any) -> dict[str, Any]:
    """Cfg of PaddleClas weights, converted as they load."""
    ssld = 'distilled by SSLD' if '_ssld' in file else 'trained on ImageNet-1k'
    return _cfg(
        url=f'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{file}_pretrained.pdparams',
        custom_load=True,
        origin_url='https://github.com/PaddlePaddle/PaddleClas',
        description=f'PaddleClas weights, {ssld}, converted as they load.',
        **kwargs,
    )


_DEEP = {'first_conv': 'conv1.0'}

default_cfgs = generate_default_cfgs({
    'res2net50_se.se_identity_in1k': _icfg('res2net50_26w_4s.in1k'),
    'res2net50_48w_2s_se.se_identity_in1k': _icfg('res2net50_48w_2s.in1k'),
    'res2net50_14w_8s_se.se_identity_in1k': _icfg('res2net50_14w_8s.in1k'),
    'res2net50_26w_6s_se.se_identity_in1k': _icfg('res2net50_26w_6s.in1k'),
    'res2net50_26w_8s_se.se_identity_in1k': _icfg('res2net50_26w_8s.in1k'),
    'res2net101_se.se_identity_in1k': _icfg('res2net101_26w_4s.in1k'),
    'res2net50d_se.se_identity_in1k': _icfg('res2net50d.in1k', **_DEEP),
    'res2net101d_se.se_identity_in1k': _icfg('res2net101d.in1k', **_DEEP),
    'res2next50_se.se_identity_in1k': _icfg('res2next50.in1k'),
    'res2net50_18w_4s.untrained': _ucfg("The paper's light network; no weights are published."),
    'res2net152d.untrained': _ucfg("The authors' v1b-152; their .pth file fits.", **_DEEP),
    'res2next101.untrained': _ucfg('Res2NeXt with 101 layers; no weights are published.'),
    'res2net50_vd_26w_4s.ssld_in1k': _pcfg('Res2Net50_vd_26w_4s_ssld', **_DEEP),
    'res2net50_vd_26w_4s.in1k': _pcfg('Res2Net50_vd_26w_4s', **_DEEP),
    'res2net101_vd_26w_4s.ssld_in1k': _pcfg('Res2Net101_vd_26w_4s_ssld', **_DEEP),
    'res2net101_vd_26w_4s.in1k': _pcfg('Res2Net101_vd_26w_4s', **_DEEP),
    'res2net200_vd_26w_4s.ssld_in1k': _pcfg('Res2Net200_vd_26w_4s_ssld', **_DEEP),
    'res2net200_vd_26w_4s.in1k': _pcfg('Res2Net200_vd_26w_4s', **_DEEP),
    'res2net50_pd_26w_4s.in1k': _pcfg('Res2Net50_26w_4s'),
    'res2net50_pd_14w_8s.in1k': _pcfg('Res2Net50_14w_8s'),
    'res2net50_v1d_26w_4s.untrained': _ucfg("MMDetection's Res2Net-50 backbone.", **_DEEP),
    'res2net101_v1d_26w_4s.untrained': _ucfg("MMDetection's Res2Net-101 backbone.", **_DEEP),
    'res2net50_16w_4s_se.untrained': _ucfg("The article's network, with its SE module."),
    'res2net_custom.untrained': _ucfg('Res2Net of any shape, described by its arguments.'),
    'test_res2net_se.digits': _cfg(
        file=str(Path(__file__).parents[1] / 'weights' / 'test_res2net_se.digits.safetensors'),
        num_classes=10, input_size=(3, 64, 64), pool_size=(2, 2), crop_pct=1.0,
        origin_url='https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits',
        description="Tiny model in the package, trained on scikit-learn's handwritten digits.",
        label_names=tuple('0123456789'),
    ),
})  # fmt: skip


# the stem and shortcuts of the authors' v1b, timm's d and Paddle's vd models
_DEEP_STEM: dict[str, Any] = dict(stem_type='deep', stem_width=32, avg_down=True)


@register_model
def res2net50_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 4s with SE in every block."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=26, scale=4, attn_layer='se')
    return _create_res2net('res2net50_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_48w_2s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 48w x 2s with SE in every block."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=48, scale=2, attn_layer='se')
    return _create_res2net('res2net50_48w_2s_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_14w_8s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 14w x 8s with SE in every block."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=14, scale=8, attn_layer='se')
    return _create_res2net('res2net50_14w_8s_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_26w_6s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 6s with SE in every block."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=26, scale=6, attn_layer='se')
    return _create_res2net('res2net50_26w_6s_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_26w_8s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 8s with SE in every block."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=26, scale=8, attn_layer='se')
    return _create_res2net('res2net50_26w_8s_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net101_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-101 26w x 4s with SE in every block."""
    model_args = dict(layers=(3, 4, 23, 3), base_width=26, scale=4, attn_layer='se')
    return _create_res2net('res2net101_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50d_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50-D (the authors' v1b) with SE in every block."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=26, scale=4, attn_layer='se', **_DEEP_STEM)
    return _create_res2net('res2net50d_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net101d_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-101-D (the authors' v1b) with SE in every block."""
    model_args = dict(layers=(3, 4, 23, 3), base_width=26, scale=4, attn_layer='se', **_DEEP_STEM)
    return _create_res2net('res2net101d_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2next50_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2NeXt-50 4w x 4s x 8c with SE in every block."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=4, scale=4, cardinality=8, attn_layer='se')
    return _create_res2net('res2next50_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_18w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 18w x 4s, the paper's light network."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=18, scale=4)
    return _create_res2net('res2net50_18w_4s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net152d(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-152-D, the authors' v1b-152."""
    model_args = dict(layers=(3, 8, 36, 3), base_width=26, scale=4, **_DEEP_STEM)
    return _create_res2net('res2net152d', pretrained, **dict(model_args, **kwargs))


@register_model
def res2next101(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2NeXt-101 4w x 4s x 8c."""
    model_args = dict(layers=(3, 4, 23, 3), base_width=4, scale=4, cardinality=8)
    return _create_res2net('res2next101', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_vd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net50_vd 26w x 4s."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=26, scale=4, semantics='paddle', **_DEEP_STEM)
    return _create_res2net('res2net50_vd_26w_4s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net101_vd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net101_vd 26w x 4s."""
    model_args = dict(
        layers=(3, 4, 23, 3), base_width=26, scale=4, semantics='paddle', **_DEEP_STEM
    )
    return _create_res2net('res2net101_vd_26w_4s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net200_vd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net200_vd 26w x 4s."""
    model_args = dict(
        layers=(3, 12, 48, 3), base_width=26, scale=4, semantics='paddle', **_DEEP_STEM
    )
    return _create_res2net('res2net200_vd_26w_4s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_pd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net50 26w x 4s, with the plain stem."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=26, scale=4, semantics='paddle')
    return _create_res2net('res2net50_pd_26w_4s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_pd_14w_8s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net50 14w x 8s, with the plain stem."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=14, scale=8, semantics='paddle')
    return _create_res2net('res2net50_pd_14w_8s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_v1d_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MMDetection's Res2Net-50 26w x 4s."""
    model_args = dict(layers=(3, 4, 6, 3), base_width=26, scale=4, semantics='mmdet', **_DEEP_STEM)
    return _create_res2net('res2net50_v1d_26w_4s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net101_v1d_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MMDetection's Res2Net-101 26w x 4s."""
    model_args = dict(layers=(3, 4, 23, 3), base_width=26, scale=4, semantics='mmdet', **_DEEP_STEM)
    return _create_res2net('res2net101_v1d_26w_4s', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net50_16w_4s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 16w x 4s with SE: the article's network, up to names and convolution biases."""
    model_args = dict(
        layers=(3, 4, 6, 3), base_width=16, scale=4, semantics='caffe', attn_layer='se'
    )
    return _create_res2net('res2net50_16w_4s_se', pretrained, **dict(model_args, **kwargs))


@register_model
def res2net_custom(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net without a name of its own: every argument of `Res2Net` is the caller's."""
    return _create_res2net('res2net_custom', pretrained, **kwargs)


@register_model
def test_res2net_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Tiny Res2Net with SE for tests and demonstrations; its weights are in the package."""
    model_args = dict(
        layers=(1, 2, 2, 1), base_width=26, scale=4, attn_layer='se', channels=(16, 32, 40, 48)
    )
    return _create_res2net('test_res2net_se', pretrained, **dict(model_args, **kwargs))
