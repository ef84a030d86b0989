"""The authors' checkpoints (v1, v1b and Res2NeXt), whose keys are timm's."""

from collections.abc import Collection

from ..engine import Rule
from ..source import Published, Source

AUTHORS_LICENSE = (
    "The authors' README licenses the code under CC BY-NC-SA 4.0 and names no license for the "
    'weights'
)
NO_LICENSE = "nothing: the authors' README licenses the code, under CC BY-NC-SA 4.0"


def same(*keys: str) -> tuple[Rule, ...]:
    """Return rules for keys that keep their names."""
    return tuple(Rule(key, key) for key in keys)


def block_rules() -> tuple[Rule, ...]:
    """Return the rules of the blocks for a project that names them as timm does."""
    block = 'layer{stage}.{block}'
    parts = (
        'conv1.weight', 'bn1.*', 'convs.{i}.weight', 'bns.{i}.*', 'conv3.weight', 'bn3.*',
        'se.*.*', 'downsample.{i}.*',
    )  # fmt: skip
    # SE modules of Linear layers, which mostly have no biases
    linear = {'se.fc.0': 'se.fc1', 'se.fc.2': 'se.fc2'}
    return (
        *same(*(f'{block}.{part}' for part in parts)),
        *(
            Rule(f'{block}.{theirs}.weight', f'{block}.{ours}.weight', linear=True)
            for theirs, ours in linear.items()
        ),
        *(
            Rule(f'{block}.{theirs}.bias', f'{block}.{ours}.bias')
            for theirs, ours in linear.items()
        ),
    )


def official_rules(keys: Collection[str]) -> tuple[Rule, ...]:
    """Return the rules, which rename nothing. Only v1b has the keys of a deep stem."""
    stem = same('conv1.weight', 'conv1.{i}.*', 'bn1.*', 'maxpool.{i}.*')
    return (*stem, *block_rules(), *same('fc.*'))


def _file(file: str, top1: str) -> Published:
    return Published(
        file,
        f'{top1} % top-1',
        figure_source="the authors' README, from the top-1 error",
        license='unknown',
        license_source=NO_LICENSE,
        by='the authors',
        url=f'https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/{file}',
    )


def _jittor(name: str) -> Published:
    """Describe a file of Jittor: a pickled dictionary of arrays with a checksum behind it."""
    return Published(
        f'{name}.pkl',
        '',
        figure_source='',
        license='unknown',
        license_source="nothing: Jittor's repository is Apache-2.0 and is silent on weights",
        by='Jittor',
        url=f'https://cg.cs.tsinghua.edu.cn/jittor/assets/build/checkpoints/{name}.pkl',
    )


SOURCE = Source(
    name='official',
    mark=r'layer1\.0\.convs\.0\.weight',
    rules=official_rules,
    # a state dict under these keys may have been trained with other blocks
    semantics=('official', 'mmdet', 'detectron2', 'maskrcnn', 'paddle', 'caffe'),
    license=f'{AUTHORS_LICENSE}.',
    published=(
        _file('res2net50_48w_2s-afed724a.pth', '77.32'),
        _file('res2net50_26w_4s-06e79181.pth', '77.99'),
        _file('res2net50_14w_8s-6527dddc.pth', '78.14'),
        _file('res2net50_26w_6s-19041792.pth', '78.58'),
        _file('res2net50_26w_8s-2c7c9f12.pth', '79.20'),
        _file('res2net101_26w_4s-02a759a1.pth', '79.19'),
        _file('res2next50_4s-6ef7e7bf.pth', '78.24'),
        _file('res2net50_v1b_26w_4s-3cf99910.pth', '80.27'),
        _file('res2net101_v1b_26w_4s-0812c246.pth', '81.23'),
        _jittor('res2net50_48w_2s'),
        _jittor('res2net50_26w_4s'),
        _jittor('res2net50_14w_8s'),
        _jittor('res2net50_26w_6s'),
        _jittor('res2net50_26w_8s'),
        _jittor('res2net101_26w_4s'),
    ),
)
