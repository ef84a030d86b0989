"""What the first block of a stage computes, by the project that published it.

The published implementations have the same parameters, names and shapes, and differ only in this.
"""

from typing import NamedTuple


class Semantics(NamedTuple):
    """What the first block of a stage computes.

    All later blocks are equal in every variant: they add to each split the output of the split
    before it, and they pass the last split on unchanged.

    There are three kinds of first blocks: with stride 1 (stage 1), strided (stages 2 to 4), and
    dilated (a stage whose stride is replaced by dilation, with `output_stride` 8 or 16).

    Attributes:
        first_adds: A first block with stride 1 adds the output of the previous split.
        first_pools: A first block with stride 1 average-pools its last split (3x3, stride 1).
            Otherwise the last split passes unchanged.
        strided_adds: A strided or dilated first block adds the output of the previous split.
        strided_pools: A strided first block average-pools its last split (3x3, with the stride of
            the 3x3 convolutions). Otherwise the last split passes unchanged, which needs
            `stride_in_conv1`.
        dilated_pools: A dilated first block average-pools its last split (3x3, stride 1).
        stride_in_conv1: The 1x1 convolution conv1 has the stride of the block. Otherwise the 3x3
            convolutions have it.
        count_pads: The pooling counts the zeros of the padding (`count_include_pad=True` in torch,
            `exclusive=False` in Paddle).
        dilates_first: A dilated first block is dilated as the other blocks of its stage, and its
            shortcut does not pool. Otherwise, as in timm, it is dilated as the stage before, and
            with `avg_down` its shortcut pools (2x2, stride 1).
    """

    first_adds: bool
    first_pools: bool
    strided_adds: bool
    strided_pools: bool
    dilated_pools: bool
    stride_in_conv1: bool
    count_pads: bool
    dilates_first: bool


# fmt: off
SEMANTICS = {
    #                       first_ first_ strided_ strided_ dilated_ stride_in_ count_ dilates_
    #                       adds   pools  adds     pools    pools    conv1      pads   first
    'official':   Semantics(False, True,  False,   True,    True,    False,     True,  False),
    'mmdet':      Semantics(False, False, False,   True,    False,   False,     True,  True),
    'detectron2': Semantics(False, False, False,   False,   False,   True,      True,  True),
    'maskrcnn':   Semantics(False, True,  False,   True,    True,    True,      True,  False),
    'paddle':     Semantics(True,  False, False,   True,    True,    False,     False, False),
    'caffe':      Semantics(True,  False, True,    False,   False,   True,      True,  False),
}
"""`Semantics` by name.

* `official`: gasvn/Res2Net, timm and MMPretrain
* `mmdet`: MMDetection
* `detectron2`: the detectors of Res2Net-detectron2 and CenterNet2, with the stride in the 1x1
  convolution by default
* `maskrcnn`: Res2Net-maskrcnn, with the stride in the 1x1 convolution by default
* `paddle`: PaddleClas and PaddleDetection
* `caffe`: 4uiiurz1/pytorch-res2net and the article's network, with the stride in the 1x1
  convolution as in Caffe's ResNet

>>> from timm_res2net import SEMANTICS
>>> list(SEMANTICS)
['official', 'mmdet', 'detectron2', 'maskrcnn', 'paddle', 'caffe']
>>> SEMANTICS['paddle'].count_pads
False
"""
# fmt: on
