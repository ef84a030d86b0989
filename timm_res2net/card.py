"""Model cards: what a folder's README.md tells its reader, and the Hub."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.models import get_pretrained_cfg

from .folder import in_chans_of, timms_names
from .models.figures import FIGURES
from .text import table

__all__ = [
    'ABOUT',
    'PERCENT',
    'Result',
    'card_of_tag',
    'made_from_of',
    'merge_card',
    'owners_text',
    'results_of',
    'write_card',
]

# What stands between these lines is ours and is written anew; the rest of a card is its owner's.
_BEGIN = '<!-- timm_res2net writes what stands from here -->'
_END = '<!-- to here anew; the rest is kept -->'
_REGION = re.compile(f'{re.escape(_BEGIN)}.*?{re.escape(_END)}', re.DOTALL)

ABOUT = (
    'A Res2Net splits the channels of every block into parts, each of which sees the convolved one '
    'before it, so that one block holds several receptive fields.'
)

_METRICS = {'top1': 'Top-1 accuracy', 'top5': 'Top-5 accuracy', 'accuracy': 'Accuracy'}
PERCENT = tuple(_METRICS)
_SOURCES = {
    'timm results-imagenet.csv': 'https://github.com/huggingface/pytorch-image-models/blob/main/'
    'results/results-imagenet.csv',
    'PaddleClas model zoo': 'https://github.com/PaddlePaddle/PaddleClas',
}

_RES2NET = """@article{gao2021res2net,
  title   = {Res2Net: A New Multi-Scale Backbone Architecture},
  author  = {Gao, Shang-Hua and Cheng, Ming-Ming and Zhao, Kai and Zhang, Xin-Yu and
             Yang, Ming-Hsuan and Torr, Philip},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume  = {43},
  number  = {2},
  pages   = {652--662},
  year    = {2021},
  doi     = {10.1109/TPAMI.2019.2938758}
}"""
_SE = """@inproceedings{hu2018squeeze,
  title     = {Squeeze-and-Excitation Networks},
  author    = {Hu, Jie and Shen, Li and Sun, Gang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2018}
}"""
_SSLD = """@article{cui2021beyond,
  title   = {Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to
             Improve Backbones},
  author  = {Cui, Cheng and Guo, Ruoyu and Du, Yuning and He, Dongliang and Li, Fu and others},
  journal = {arXiv preprint arXiv:2103.05959},
  year    = {2021}
}"""
_TIMM = """@misc{rw2019timm,
  author = {Ross Wightman},
  title  = {PyTorch Image Models},
  year   = {2019},
  doi    = {10.5281/zenodo.4414861}
}"""


class Result(NamedTuple):
    """A measured or published accuracy.

    Attributes:
        metric: 'top1', 'top5', 'accuracy', or another metric's name.
        value: Its value; percent for the first three.
        dataset: Name of the data set, as the Hub has it.
        source: Who published it, '' for the weights' owner.
    """

    metric: str
    value: float
    dataset: str
    source: str = ''


def published(name: str, tag: str) -> list[Result]:
    """The published accuracy of a registered tag, if there is one."""
    if tag not in FIGURES[name].top1:
        return []
    value, source = FIGURES[name].top1[tag]
    return [Result('top1', value, 'imagenet-1k', source)]


def count_gmacs(model: Any, size: Sequence[int]) -> float:
    """Multiply-accumulates of one image in 1e9: half of what `torch.utils.flop_counter` counts.

    Args:
        model: A model on the meta device.
        size: Channels, height and width of the image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, *size, device='meta'))
    return counter.get_total_flops() / 2e9


def facts_of(model: Any, architecture: str, semantics: str, gmacs: float) -> dict[str, str]:
    """The rows of a card's first table.

    Args:
        model: The model, with the `pretrained_cfg` of its weights.
        architecture: Its name.
        semantics: Its block semantics.
        gmacs: Its multiply-accumulates, in 1e9.
    """
    levels = model.feature_info
    classes = f'{model.num_classes:,}' if model.num_classes else 'none: features only'
    return {
        'architecture': f'`{architecture}`',
        'parameters': f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M',
        'multiply-accumulates': f'{gmacs:.2f} G at the image size',
        'image size': ' × '.join(map(str, model.pretrained_cfg['input_size'][1:])) + ' px',
        'classes': classes,
        'block semantics': f'`{semantics}`',
        'feature levels': ', '.join(
            f'{level["num_chs"]} channels at stride {level["reduction"]}' for level in levels
        ),
    }


def _usage(load: str, own: bool, model: Any) -> str:
    imports = 'import timm, timm_res2net' if own else 'import timm'
    classes, mode = model.num_classes, {1: 'L', 3: 'RGB'}.get(in_chans_of(model))
    blocks = []
    if classes and mode:
        blocks.append(f"""Classify:

```python
{imports}
from PIL import Image

model = timm.create_model('{load}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open('image.png').convert('{mode}'))[None])
top5 = logits.softmax(1).topk({min(5, classes)})
```""")
    blocks.append(f"""Features at five levels, for detection and segmentation:

```python
{imports}

neck = timm.create_model('{load}', pretrained=True, features_only=True)
print(neck.feature_info.channels(), neck.feature_info.reduction())
```""")
    if model.global_pool.pool_type:
        blocks.append(f"""Embeddings, one vector an image:

```python
{imports}

encoder = timm.create_model('{load}', pretrained=True, num_classes=0).eval()
```""")
    if own:
        blocks.append('`import timm_res2net` registers the architecture with timm.')
    return '\n\n'.join(blocks)


def _body(
    title: str,
    what: str,
    usage: str,
    facts: Mapping[str, str],
    results: Sequence[Result],
    made_from: str,
    licence: str,
    extra: Sequence[str],
) -> str:
    """The part of a card that is ours."""
    parts = [f'# {title}', what, '## Use', usage, '## Facts']
    parts.append(table(('what', ''), [*facts.items()]))
    if results:
        rows = [
            (
                r.dataset.replace('|', '/'),
                _METRICS.get(r.metric, r.metric).replace('|', '/'),
                f'{r.value:g}',
                r.source or "the weights' owner",
            )
            for r in results
        ]
        parts += ['## Accuracy', table(('data set', 'metric', 'value', 'by'), rows)]
        if any(r.source for r in results):
            parts.append('Published there, not measured by timm_res2net.')
    parts += [made_from] * bool(made_from)
    parts += ['## Licence', licence, '## Citation']
    cited = [_RES2NET, *extra, _TIMM]
    parts.append('\n\n'.join(f'```bibtex\n{entry}\n```' for entry in cited))
    return '\n\n'.join(parts)


def _metadata(
    title: str, licence: str | None, results: Sequence[Result], base: str | None, classes: int
) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    task = 'image-classification' if classes else 'image-feature-extraction'
    found = [
        EvalResult(
            task_type='image-classification',
            dataset_type=r.dataset,
            dataset_name=r.dataset,
            metric_type='accuracy' if r.metric in _METRICS else r.metric,
            metric_name=_METRICS.get(r.metric, r.metric),
            metric_value=r.value,
            source_name=r.source or None,
            source_url=_SOURCES.get(r.source),
        )
        for r in results
    ]
    return ModelCardData(
        library_name='timm',
        license=licence,
        pipeline_tag=task,
        tags=[task, 'timm', 'res2net', 'transformers'],
        datasets=list(dict.fromkeys(r.dataset for r in results)) or None,
        base_model=base,
        model_name=title if results else None,
        eval_results=found or None,
    )


def citations(attention: str, tag: str = '') -> list[str]:
    """BibTeX entries of what a model is made of besides Res2Net and timm."""
    return [_SE] * (attention == 'se') + [_SSLD] * tag.startswith('ssld')


def write_card(
    title: str,
    what: str,
    load: str,
    model: Any,
    architecture: str,
    arguments: Mapping[str, Any],
    semantics: str,
    *,
    licence: str | None,
    licence_text: str,
    results: Sequence[Result] = (),
    anew: Sequence[Result] | None = None,
    gmacs: float | None = None,
    base: str | None = None,
    tag: str = '',
    made_from: str = '',
) -> str:
    """A card as a whole.

    Args:
        title: Its heading.
        what: One paragraph on what the model is.
        load: What `timm.create_model` is called with, such as 'hf-hub:me/my_res2net'.
        model: The model, with the `pretrained_cfg` of its weights.
        architecture: Its name.
        arguments: What `timm.create_model` has to be given besides.
        semantics: Its block semantics.
        licence: Identifier for the Hub; None if unknown.
        licence_text: What the reader is told of it.
        results: Accuracies to show.
        anew: Those of them that the metadata is to name, all if None.
        gmacs: Multiply-accumulates, in 1e9; counted if None.
        base: Repository whose weights it starts from.
        tag: Its tag, for the citations.
        made_from: A section on the file that it was made from.

    Returns:
        YAML metadata and markdown.
    """
    if gmacs is None:
        made: Any = timm.create_model(
            architecture, device='meta', num_classes=model.num_classes, **arguments
        )
        gmacs = count_gmacs(made.eval(), model.pretrained_cfg['input_size'])
    own = architecture not in timms_names()
    body = _body(
        title,
        what,
        _usage(load, own, model),
        facts_of(model, architecture, semantics, gmacs),
        results,
        made_from,
        licence_text,
        citations(arguments.get('attn_layer', ''), tag),
    )
    stated = results if anew is None else anew
    data = _metadata(title, licence, stated, base, model.num_classes)
    return f'---\n{data.to_yaml()}\n---\n{_BEGIN}\n{body}\n{_END}\n'


def _read_card(text: str) -> Any:
    from huggingface_hub import ModelCard

    if not text.startswith('---'):
        text = f'---\n{{}}\n---\n{text}'  # the client would print that there is no metadata
    try:
        return ModelCard(text)
    except Exception as error:  # YAML and the Hub's own checks
        raise ValueError(
            f'The metadata of the card cannot be read ({" ".join(str(error).split())}). Mend what '
            'stands between its --- lines.'
        ) from error


def merge_card(new: str, old: str, keep_results: bool = True) -> str:
    """A new card within an old one: our part and our metadata are new, the rest stays.

    An old card without our part keeps all of its text.

    Args:
        new: As `write_card` writes it.
        old: A card.
        keep_results: Keep the old one's results, but for those that the new one has anew.

    Raises:
        ValueError: The old card's metadata cannot be read.
    """
    ours, theirs = _read_card(new), _read_card(old)
    data, kept = ours.data.to_dict(), theirs.data.to_dict()
    if not keep_results:
        kept.pop('model-index', None)
    elif data.get('model-index') and kept.get('model-index'):
        anew = {_key(r) for r in ours.data.eval_results}
        others = [r for r in theirs.data.eval_results if _key(r) not in anew]
        ours.data.eval_results = [*others, *ours.data.eval_results]
        data = ours.data.to_dict()
    merged = {**kept, **data}
    for key in ('tags', 'datasets'):
        both = [*_as_list(kept.get(key)), *_as_list(data.get(key))]
        if both:
            merged[key] = list(dict.fromkeys(both))
    text = theirs.text.strip('\n')
    part = _REGION.search(ours.text)
    assert part is not None
    text = _REGION.sub(lambda _: part[0], text, count=1)
    return f'---\n{type(ours.data)(**merged).to_yaml()}\n---\n{text}\n'


def _key(result: Any) -> tuple[Any, ...]:
    return result.dataset_type, result.metric_type, result.metric_name


def owners_text(card: str) -> str:
    """What stands on a card outside of our part."""
    return _REGION.sub('', _read_card(card).text).strip()


def made_from_of(card: str) -> str:
    """The section of a card on the file that the model was made from, '' without one."""
    found = re.search(r'^## Made from\n.*?(?=\n\n## )', card, re.DOTALL | re.MULTILINE)
    return found[0] if found else ''


def results_of(card: str) -> tuple[str | None, list[Result]]:
    """Licence and numeric results that a card's metadata names.

    Raises:
        ValueError: They cannot be read.
    """
    data = _read_card(card).data
    names = {name: metric for metric, name in _METRICS.items()}
    found = []
    for r in data.eval_results or []:
        if isinstance(r.metric_value, int | float):
            metric = names.get(r.metric_name, r.metric_type)
            found.append(Result(metric, r.metric_value, r.dataset_type, r.source_name or ''))
    return data.license, found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def card_of_tag(name: str, tag: str, model: Any) -> str:
    """The card of a registered tag.

    Args:
        name: Architecture.
        tag: Its tag.
        model: The model, with the tag's `pretrained_cfg`.
    """
    cfg: Any = get_pretrained_cfg(f'{name}.{tag}')
    full = f'{name}.{tag}'
    notes = '\n'.join(f'- {note}' for note in cfg.notes or ())
    licence_text = f'`{cfg.license}`.'
    if cfg.license == 'unknown':
        licence_text = (
            "Unknown: the weights are the Res2Net authors', whose README has said CC BY-NC-SA 4.0 "
            "since 2021, while timm's model cards say unknown. Commercial use is for you to clear."
        )
    elif cfg.url:
        licence_text = "Apache-2.0, as PaddleClas's repository and its weights are."
    what = f'{cfg.description} {ABOUT}' + (f'\n\n{notes}' if notes else '')
    what += f'\n\nPaper: {cfg.paper_name}, {cfg.paper_ids}. Origin: {cfg.origin_url}.'
    return write_card(
        full,
        what,
        full,
        model,
        name,
        model.model_args,
        model.model_args['semantics'],
        licence=cfg.license,
        licence_text=licence_text,
        results=published(name, tag),
        gmacs=FIGURES[name].gmacs,
        base=cfg.hf_hub_id,
        tag=tag,
    )
