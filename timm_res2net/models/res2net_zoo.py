"""Res2Net models that timm does not have.

Papers:
* `Res2Net: A New Multi-scale Backbone Architecture` - https://arxiv.org/abs/1904.01169
* `Squeeze-and-Excitation Networks` - https://arxiv.org/abs/1709.01507
* `Bag of Tricks for Image Classification with Convolutional Neural Networks` (the d and vd models)
  - https://arxiv.org/abs/1812.01187

Weights from:
* https://huggingface.co/timm, the files of the Res2Net authors. In the `_se` models they start the
  squeeze-and-excitation gates at the identity (see loading.py).
* https://github.com/PaddlePaddle/PaddleClas and https://github.com/mindspore-lab/mindcv, converted
  while they load

The name of this file must stay: timm sorts models by the last part of their module's name, and
`res2net` is the module of timm's own Res2Nets.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import BlurPool2d, LayerType
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models.resnet import ResNet
from torch import nn

from ..convert import FILES, PublishedFile
from ..layers.bottle2neck import AttnLayer, Bottle2neck
from .arguments import FEATURES, RES2NET, checked, parse_arguments
from .loading import checkpoint_filter_fn, load_foreign, prepare_weights

__all__ = ['Res2Net']  # register_model adds every entrypoint

_AA_LAYERS = {'avg': nn.AvgPool2d, 'blur': BlurPool2d}
# Arguments that `model_args` leaves out: they do not change the outputs of a trained model, or timm
# stores them elsewhere.
NOT_RECORDED = (
    'num_classes', 'drop_rate', 'drop_path_rate', 'drop_block_rate', 'zero_init_last', 'device',
    'dtype',
)  # fmt: skip


class Res2Net(ResNet):
    """Res2Net, that is, timm's `ResNet` with `Bottle2neck` blocks.

    Every argument is a plain JSON value (classes are accepted too). Each can be given to
    `timm.create_model`, and `timm.models.save_for_hf` can store it.

    Shape:
        - Input: (B, in_chans, H, W)
        - Output: (B, num_classes) logits
        - Features: five levels of stride 2, 4, 8, 16 and 32. The first has channels[0] channels,
          the others 4 * channels[i].

    >>> import torch
    >>> from timm_res2net import Res2Net
    >>> model = Res2Net(layers=(1, 1, 1, 1), scale=4, attn_layer='se', num_classes=10)
    >>> model(torch.randn(2, 3, 224, 224)).shape
    torch.Size([2, 10])
    """

    __jit_unused_properties__: ClassVar[list[str]] = ['model_args']

    @checked(RES2NET)
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
        device: Any = None,
        dtype: Any = None,
    ):
        """
        Args:
            layers: Number of blocks in each of the four stages.
            num_classes: Classes of the head, 0 for no head.
            in_chans: Channels of the images.
            output_stride: Stride of the last feature level: 32, 16 or 8. Below 32, dilation
                replaces stride.
            global_pool: Pooling before the head: 'avg', 'max', 'avgmax', 'catavgmax', or '' for
                none.
            cardinality: Groups of the 3x3 convolutions (Res2NeXt).
            base_width: Channels of a split, per group, in a stage with channels[i] = 64.
            scale: Number of splits of a block.
            semantics: Computation of the first block of a stage, one of `SEMANTICS`.
            attn_layer: Attention in every block: a name ('se', 'eca', 'cbam', ...), a class, or ''
                for none.
            stem_width: Channels of the first convolutions of a deep stem. Its last convolution has
                twice as many. A plain stem has channels[0] channels.
            stem_type: '' for one 7x7 convolution, 'deep' or 'deep_tiered' for three 3x3
                convolutions.
            replace_stem_pool: Replace the max-pooling of the stem by a convolution of stride 2.
            down_kernel_size: Kernel size of the convolution in a shortcut.
            avg_down: Average-pool before the convolution of a shortcut, which then has stride 1.
            channels: Planes of the four stages. The stages have four times as many output channels.
            act_layer: Activation, a name or a class.
            norm_layer: Normalization, a name or a class.
            aa_layer: Anti-aliasing in the pooling of the stem: 'avg', 'blur', or a class.
            drop_rate: Dropout rate before the head.
            drop_path_rate: Stochastic depth rate of the last block. It increases linearly from 0 at
                the first block.
            drop_block_rate: DropBlock rate in the last two stages.
            zero_init_last: Start every block as its shortcut.
            device: Device of the parameters. 'meta' is supported.
            dtype: Data type of the parameters.

        Raises:
            ValueError: A value that arguments.py does not allow, or an odd channels[0] with
                a plain stem, which cannot be built.
            TypeError: An unknown argument.
        """
        arguments: dict[str, Any] = dict(locals())
        del arguments['self'], arguments['__class__']
        recorded = {k: v for k, v in arguments.items() if k not in NOT_RECORDED and v is not None}
        if isinstance(aa_layer, str):
            arguments['aa_layer'] = _AA_LAYERS[aa_layer]
        # timm fixes the width of a plain stem at 64 and has no argument for it. For another width,
        # build a deep stem, whose width is an argument that the layers after it follow, and then
        # replace its convolutions by one 7x7 convolution.
        plain_width = channels[0] if stem_type == '' and channels[0] != 64 else 0
        if plain_width % 2:
            raise ValueError(
                f'channels[0]={plain_width} must be even: it is the width of the plain stem.'
            )
        if plain_width:
            arguments.update(stem_type='deep', stem_width=plain_width // 2)
        block_args = {key: arguments.pop(key) for key in ('scale', 'semantics', 'attn_layer')}
        # timm's annotation lists its own two blocks
        super().__init__(Bottle2neck, block_args=block_args, **arguments)  # type: ignore[arg-type]
        if plain_width:
            dd = {'device': device, 'dtype': dtype}
            conv1 = nn.Conv2d(in_chans, plain_width, 7, stride=2, padding=3, bias=False, **dd)
            nn.init.kaiming_normal_(conv1.weight, mode='fan_out', nonlinearity='relu')
            self.conv1 = conv1  # type: ignore[assignment]  # replaces the deep stem
        self._recorded_args = recorded

    @property
    def model_args(self: Any) -> dict[str, Any]:
        """Arguments that rebuild this network, with the pooling that it has now.

        Pass them to timm: `save_for_hf(model, ..., model_args=model.model_args)`. The number of
        classes is not among them, because timm's config has an entry of its own for it.
        """
        pool_type = getattr(self.global_pool, 'pool_type', None)  # an HRNet may have no pooling
        pool = {} if pool_type is None else {'global_pool': pool_type}
        return {**self._recorded_args, **pool}

    # timm calls it for cfgs with `custom_load`
    load_pretrained = torch.jit.ignore(load_foreign)


def create_res2net(
    variant: str,
    pretrained: bool,
    given: Mapping[str, Any],
    model_class: type[Res2Net] = Res2Net,
    **model_args: Any,
) -> Res2Net:
    """Build a Res2Net, with weights on request.

    Args:
        variant: Registered name, also one of timm's own, whose cfg the model gets.
        pretrained: Load weights.
        given: Arguments of the caller, which replace those of the variant: of `Res2Net`, and those
            that `timm.create_model` passes on.
        model_class: Class of the model.
        **model_args: Arguments of the variant, as far as `Res2Net` has others by default.
    """
    if 'block_args' in given:
        raise TypeError(
            "Res2Net has no argument 'block_args'. Pass scale, attn_layer and semantics directly."
        )
    kwargs = parse_arguments(FEATURES, {**model_args, **given})
    if kwargs.get('features_only'):  # loads files without a classifier, too
        kwargs['num_classes'] = 0
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    path = overlay.get('file') or overlay.get('url')
    if path:  # timm would read such a file with `torch.load`
        overlay.setdefault('custom_load', str(path).endswith(('.pdparams', '.ckpt')))
    cfg: Any = resolve_pretrained_cfg(variant, kwargs.pop('pretrained_cfg', None), overlay)
    if pretrained:
        prepare_weights(cfg, kwargs.get('cache_dir'))
    return build_model_with_cfg(
        model_class,
        variant,
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


def make_cfg(**kwargs: Any) -> dict[str, Any]:
    """Return a cfg with timm's convention for ImageNet and the paper, as far as it is not given."""
    return {
        'url': '',
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1', 'classifier': 'fc',
        'license': None,  # as long as there are no weights
        'origin_url': 'https://github.com/Res2Net/Res2Net-PretrainedModels',
        'paper_name': 'Res2Net: A New Multi-scale Backbone Architecture',
        'paper_ids': 'arXiv:1904.01169',
        **kwargs,
    }  # fmt: skip


_DEEP = {'first_conv': 'conv1.0'}


def _published_cfg(tag: str, file: PublishedFile) -> dict[str, Any]:
    """Return the cfg of a registered name with its tag, whose weights a published file has."""
    cfg = make_cfg(license=file.license, origin_url=file.origin_url)
    if re.match(r'res2net\d+(d|_vd)', tag):
        cfg.update(_DEEP)
    if file.by == 'timm':
        cfg.update(
            hf_hub_id=file.file,
            description=f'Weights of {file.file} with squeeze-and-excitation gates at the '
            'identity.',
        )
    else:
        cfg.update(url=file.url, custom_load=True)
        training = 'distilled by SSLD' if '.ssld' in tag else 'trained on ImageNet-1k'
        gates = ' with squeeze-and-excitation gates at the identity' if '.se_' in tag else ''
        cfg['description'] = f'{file.by} weights{gates}, {training}, converted while they load.'
    notes = []
    if '.se_identity' in tag:
        notes.append(
            f'The outputs equal those of {file.file} bit for bit: the gates are not trained yet.'
        )
    if file.license == 'unknown':
        notes.append(
            "The weights are the Res2Net authors'. Their README licenses the code under CC "
            "BY-NC-SA 4.0 and names no license for the weights; timm's model card says unknown."
        )
    return {**cfg, 'notes': tuple(notes)} if notes else cfg


default_cfgs = generate_default_cfgs({
    **{tag: _published_cfg(tag, file) for file in FILES for tag in file.tags},
    'res2net50_18w_4s.untrained': make_cfg(
        description="The paper's light network, without weights."
    ),
    'res2net152d.untrained': make_cfg(
        description="The authors' v1b-152. Their .pth file fits.", **_DEEP
    ),
    'res2next101.untrained': make_cfg(description='Res2NeXt with 101 layers, without weights.'),
    'res2net50_v1d_26w_4s.untrained': make_cfg(description="MMDetection's Res2Net-50.", **_DEEP),
    'res2net101_v1d_26w_4s.untrained': make_cfg(description="MMDetection's Res2Net-101.", **_DEEP),
    'res2net50_16w_4s_se.untrained': make_cfg(
        description="The article's network, with its SE module."
    ),
    'res2net_custom.untrained': make_cfg(
        description='Res2Net of any shape, described by its arguments.'
    ),
    'test_res2net_se.digits': make_cfg(
        file=str(Path(__file__).parents[1] / 'weights' / 'test_res2net_se.digits.safetensors'),
        num_classes=10, input_size=(3, 64, 64), pool_size=(2, 2), crop_pct=1.0,
        license='apache-2.0',
        origin_url='https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits',
        description="Tiny model in the package, trained on scikit-learn's handwritten digits.",
        label_names=tuple('0123456789'),
    ),
})  # fmt: skip


# The stem and shortcuts of the authors' v1b models, timm's d models and Paddle's vd models
_DEEP_STEM: dict[str, Any] = dict(stem_type='deep', stem_width=32, avg_down=True)
_VD: dict[str, Any] = dict(semantics='paddle', **_DEEP_STEM)
_V1D: dict[str, Any] = dict(semantics='mmdet', **_DEEP_STEM)
_SE: dict[str, Any] = dict(attn_layer='se')
_101 = (3, 4, 23, 3)


@register_model
def res2net50_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 4s with SE in every block."""
    return create_res2net('res2net50_se', pretrained, kwargs, **_SE)


@register_model
def res2net50_48w_2s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 48w x 2s with SE in every block."""
    return create_res2net('res2net50_48w_2s_se', pretrained, kwargs, base_width=48, scale=2, **_SE)


@register_model
def res2net50_14w_8s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 14w x 8s with SE in every block."""
    return create_res2net('res2net50_14w_8s_se', pretrained, kwargs, base_width=14, scale=8, **_SE)


@register_model
def res2net50_26w_6s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 6s with SE in every block."""
    return create_res2net('res2net50_26w_6s_se', pretrained, kwargs, scale=6, **_SE)


@register_model
def res2net50_26w_8s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 26w x 8s with SE in every block."""
    return create_res2net('res2net50_26w_8s_se', pretrained, kwargs, scale=8, **_SE)


@register_model
def res2net101_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-101 26w x 4s with SE in every block."""
    return create_res2net('res2net101_se', pretrained, kwargs, layers=_101, **_SE)


@register_model
def res2net50d_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50-D (the authors' v1b) with SE in every block."""
    return create_res2net('res2net50d_se', pretrained, kwargs, **_SE, **_DEEP_STEM)


@register_model
def res2net101d_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-101-D (the authors' v1b) with SE in every block."""
    return create_res2net('res2net101d_se', pretrained, kwargs, layers=_101, **_SE, **_DEEP_STEM)


@register_model
def res2next50_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2NeXt-50 4w x 4s x 8c with SE in every block."""
    return create_res2net('res2next50_se', pretrained, kwargs, base_width=4, cardinality=8, **_SE)


@register_model
def res2net50_18w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 18w x 4s, the paper's light network."""
    return create_res2net('res2net50_18w_4s', pretrained, kwargs, base_width=18)


@register_model
def res2net152d(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-152-D, the authors' v1b-152."""
    return create_res2net('res2net152d', pretrained, kwargs, layers=(3, 8, 36, 3), **_DEEP_STEM)


@register_model
def res2next101(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2NeXt-101 4w x 4s x 8c."""
    return create_res2net(
        'res2next101', pretrained, kwargs, layers=_101, base_width=4, cardinality=8
    )


@register_model
def res2net50_vd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net50_vd 26w x 4s."""
    return create_res2net('res2net50_vd_26w_4s', pretrained, kwargs, **_VD)


@register_model
def res2net101_vd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net101_vd 26w x 4s."""
    return create_res2net('res2net101_vd_26w_4s', pretrained, kwargs, layers=_101, **_VD)


@register_model
def res2net200_vd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net200_vd 26w x 4s."""
    return create_res2net('res2net200_vd_26w_4s', pretrained, kwargs, layers=(3, 12, 48, 3), **_VD)


@register_model
def res2net50_pd_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net50 26w x 4s, with the plain stem."""
    return create_res2net('res2net50_pd_26w_4s', pretrained, kwargs, semantics='paddle')


@register_model
def res2net50_pd_14w_8s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """PaddleClas Res2Net50 14w x 8s, with the plain stem."""
    return create_res2net(
        'res2net50_pd_14w_8s', pretrained, kwargs, base_width=14, scale=8, semantics='paddle'
    )


@register_model
def res2net50_ms_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MindCV's Res2Net-50 26w x 4s, the network of timm's res2net50_26w_4s."""
    return create_res2net('res2net50_ms_26w_4s', pretrained, kwargs)


@register_model
def res2net101_ms_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MindCV's Res2Net-101 26w x 4s, the network of timm's res2net101_26w_4s."""
    return create_res2net('res2net101_ms_26w_4s', pretrained, kwargs, layers=_101)


@register_model
def res2net50d_ms_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MindCV's Res2Net-50 v1b, the network of timm's res2net50d."""
    return create_res2net('res2net50d_ms_26w_4s', pretrained, kwargs, **_DEEP_STEM)


@register_model
def res2net101d_ms_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MindCV's Res2Net-101 v1b, the network of timm's res2net101d."""
    return create_res2net('res2net101d_ms_26w_4s', pretrained, kwargs, layers=_101, **_DEEP_STEM)


@register_model
def res2net50_v1d_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MMDetection's Res2Net-50 26w x 4s."""
    return create_res2net('res2net50_v1d_26w_4s', pretrained, kwargs, **_V1D)


@register_model
def res2net101_v1d_26w_4s(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """MMDetection's Res2Net-101 26w x 4s."""
    return create_res2net('res2net101_v1d_26w_4s', pretrained, kwargs, layers=_101, **_V1D)


@register_model
def res2net50_16w_4s_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net-50 16w x 4s with SE, the article's network except for convolution biases."""
    return create_res2net(
        'res2net50_16w_4s_se', pretrained, kwargs, base_width=16, semantics='caffe', **_SE
    )


@register_model
def res2net_custom(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Res2Net of any arguments, for networks without a name of their own."""
    return create_res2net('res2net_custom', pretrained, kwargs)


@register_model
def test_res2net_se(pretrained: bool = False, **kwargs: Any) -> Res2Net:
    """Tiny Res2Net with SE for tests and demonstrations. The package contains its weights."""
    return create_res2net(
        'test_res2net_se', pretrained, kwargs, layers=(1, 2, 2, 1), **_SE, channels=(16, 32, 40, 48)
    )
