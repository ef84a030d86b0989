"""The model card: the README.md of a folder, for its reader and for the Hub."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import get_pretrained_cfg
from torch import nn

from ..convert import PUBLISHERS, PublishedFile, file_of
from ..layers.text import table
from . import extras
from .config import MODES, Config, timm_names
from .model import Model
from .remote_code import MODULE

_TEMPLATE = Path(__file__).with_name('card.md.jinja')
_REGION = re.compile(
    r'<!-- begin of the text that timm_res2net generates.*?<!-- end of the text that timm_res2net '
    r'generates -->',
    re.DOTALL,
)

ABOUT = (
    'A Res2Net block splits its channels and convolves the splits one after the other, so that one '
    'block has several receptive fields.'
)
_METRICS = {'top1': 'Top-1 accuracy', 'top5': 'Top-5 accuracy', 'accuracy': 'Accuracy'}
PERCENT = tuple(_METRICS)
"""Metrics that are given in percent."""

_URLS = {
    publisher.figures: publisher.figures_url
    for publisher in PUBLISHERS.values()
    if publisher.figures
}


def read_card(text: str) -> Any:
    """Parse the text of a README.md.

    Raises:
        ValueError: The metadata cannot be read.
    """
    if not text.startswith('---'):
        text = f'---\n{{}}\n---\n{text}'  # otherwise the client prints that metadata is missing
    try:
        return ModelCard(text)
    except Exception as error:  # YAML and the checks of the Hub
        raise ValueError(
            f'The metadata of README.md cannot be read ({" ".join(str(error).split())}). Correct '
            'the text between its --- lines.'
        ) from error


class Result(NamedTuple):
    """A measured or published accuracy.

    Attributes:
        metric: 'top1', 'top5', 'accuracy', or the name of another metric.
        value: Its value; percent for the first three.
        dataset: Name of the data set on the Hub.
        source: Who published it; '' for the owner of the weights.
    """

    metric: str
    value: float
    dataset: str
    source: str = ''


def _count_gmacs(model: nn.Module, size: Sequence[int]) -> float:
    """Count the multiply-accumulates of one image, in 1e9, of a model on the meta device.

    They are half of the operations that `torch.utils.flop_counter` counts.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, *size, device='meta'))
    return counter.get_total_flops() / 2e9


def _facts(config: Config) -> dict[str, str]:
    """Return the rows of a card's table of facts."""
    model: Any = timm.create_model(
        config.architecture, device='meta', num_classes=config.num_classes, **config.model_args
    ).eval()
    size = config.input_size
    parameters = sum(p.numel() for p in model.parameters())
    return {
        'architecture': f'`{config.network}`',
        'parameters': f'{parameters / 1e6:.2f} M',
        'multiply-accumulates': f'{_count_gmacs(model, size):.2f} G at the image size',
        'image size': ' × '.join(map(str, size[1:])) + ' px',
        'classes': f'{config.num_classes:,}' if config.num_classes else 'none, features only',
        'block semantics': f'`{config.semantics}`',
        'feature levels': ', '.join(
            f'{level["num_chs"]} channels at stride {level["reduction"]}'
            for level in model.feature_info
        ),
    }


def _auto_class(config: Config) -> str:
    """Return the class of transformers that the config's remote code serves, '' without any."""
    if not config.remote_code:
        return ''
    return 'AutoModelForImageClassification' if config.num_classes else 'AutoModel'


def _results_table(results: Sequence[Result]) -> str:
    rows = [
        (
            result.dataset.replace('|', '/'),
            _METRICS.get(result.metric, result.metric).replace('|', '/'),
            f'{result.value:g}',
            result.source or 'the owner of the weights',
        )
        for result in results
    ]
    return table(('data set', 'metric', 'value', 'published by'), rows)


def _metadata(
    title: str, config: Config, license: str | None, results: Sequence[Result], base: str | None
) -> Any:
    task = 'image-classification' if config.num_classes else 'image-feature-extraction'
    found = [
        EvalResult(
            task_type='image-classification',
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            metric_type='accuracy' if result.metric in _METRICS else result.metric,
            metric_name=_METRICS.get(result.metric, result.metric),
            metric_value=result.value,
            source_name=result.source or None,
            source_url=_URLS.get(result.source),
        )
        for result in results
    ]
    return ModelCardData(
        library_name='timm',
        license=license,
        pipeline_tag=task,
        tags=[task, 'timm', 'res2net', 'transformers'],
        datasets=list(dict.fromkeys(result.dataset for result in results)) or None,
        base_model=base,
        model_name=title if results else None,
        eval_results=found or None,
    )


def render_card(
    config: Config,
    title: str,
    load: str,
    summary: str,
    *,
    license: str | None = None,
    license_text: str = '',
    results: Sequence[Result] = (),
    stated: Sequence[Result] | None = None,
    base: str | None = None,
    remarks: Sequence[str] = (),
    paper: str = '',
    weights_of: str = '',
) -> str:
    """Render a card from its template.

    Args:
        config: Config of the model.
        title: Heading.
        load: First argument of `timm.create_model`, such as 'hf-hub:me/my_res2net'.
        summary: One paragraph on what the model is.
        license: Identifier of the license for the Hub; None if unknown.
        license_text: The text on the license; by default that of `weights_of`, or the identifier.
        results: Accuracies to show.
        stated: Those of them that the metadata names; all of them if None.
        base: Repository whose weights the model starts from.
        remarks: Further sentences, each an item of a list.
        paper: The paper, with its identifier.
        weights_of: Whose weights they are, for their license and what to cite: 'authors' of
            Res2Net, 'PaddleClas', 'MindCV', or '' for anyone else's.

    Returns:
        YAML metadata and Markdown.
    """
    own = config.architecture not in timm_names()
    in_chans = config.input_size[0]
    where, _, repo = load.partition(':')
    repo, _, revision = repo.partition('@') if where == 'hf-hub' else (repo, '', '')
    card = ModelCard.from_template(
        _metadata(title, config, license, results if stated is None else stated, base),
        template_str=re.sub(r'(\{% .*? %\})\n', r'\1', _TEMPLATE.read_text(encoding='utf-8')),
        title=title,
        summary=summary,
        remarks=remarks,
        paper=paper,
        origin=config.pretrained_cfg.get('origin_url'),
        imports='import timm, timm_res2net' if own else 'import timm',
        load=load,
        mode=MODES.get(in_chans) if config.num_classes else None,
        top=min(5, config.num_classes),
        pools=bool(config.global_pool),
        own=own,
        facts=table(('what', ''), _facts(config).items()),
        results=_results_table(results) if results else '',
        published=any(result.source for result in results),
        license_text=license_text,
        weights_of=weights_of,
        se=config.model_args.get('attn_layer') == 'se',
        install=extras.how_to_install(),
        repository=extras.REPOSITORY,
        auto_class=_auto_class(config),
        module=MODULE,
        repo=repo,
        revision=f", revision='{revision}'" if revision else '',
    )
    return str(card).rstrip('\n') + '\n'


def with_card(
    model: Model, title: str, load: str, summary: str, keep_results: bool = True, **texts: Any
) -> Model:
    """Return a model with a new card, into which its owner's text goes.

    Args:
        model: The model. Its card is its owner's, or ''.
        title: Heading.
        load: First argument of `timm.create_model`.
        summary: One paragraph on what the model is.
        keep_results: As in `merge_card`.
        **texts: Further arguments of `render_card`.

    Raises:
        ValueError: The metadata of the model's card cannot be read.
    """
    text = render_card(model.config, title, load, summary, **texts)
    return replace(model, card=merge_card(text, model.card, keep_results) if model.card else text)


def merge_card(new: str, old: str, keep_results: bool = True) -> str:
    """Put the generated text and metadata of a new card into an old one.

    The rest of the old card stays. If it has no generated text, it keeps all of its text.

    Args:
        new: A card from `render_card`.
        old: A card.
        keep_results: Keep the results of the old card that the new one does not state.

    Raises:
        ValueError: The metadata of the old card cannot be read.
    """
    ours, theirs = read_card(new), read_card(old)
    data, kept = ours.data.to_dict(), theirs.data.to_dict()
    if not keep_results:
        kept.pop('model-index', None)
    elif data.get('model-index') and kept.get('model-index'):
        stated = {_key(result) for result in ours.data.eval_results}
        others = [result for result in theirs.data.eval_results if _key(result) not in stated]
        ours.data.eval_results = [*others, *ours.data.eval_results]
        data = ours.data.to_dict()
    merged = {**kept, **data}
    for key in ('tags', 'datasets'):
        both = [*_as_list(kept.get(key)), *_as_list(data.get(key))]
        if both:
            merged[key] = list(dict.fromkeys(both))
    part = _REGION.search(ours.text)
    assert part is not None  # the template has it
    text = _REGION.sub(lambda _: part[0], theirs.text.strip('\n'), count=1)
    return f'---\n{type(ours.data)(**merged).to_yaml()}\n---\n{text}\n'


def _key(result: Any) -> tuple[Any, ...]:
    return result.dataset_type, result.metric_type, result.metric_name


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def is_generated(card: str) -> bool:
    """Return whether a card has the text that this package generates."""
    return bool(_REGION.search(card))


def owners_text(card: str) -> str:
    """Return the text of a card outside of the generated part."""
    return _REGION.sub('', read_card(card).text).strip()


def results_of(card: str) -> list[Result]:
    """Return the numeric results that the metadata of a card names.

    Raises:
        ValueError: The metadata cannot be read.
    """
    names = {name: metric for metric, name in _METRICS.items()}
    return [
        Result(
            names.get(found.metric_name, found.metric_type),
            found.metric_value,
            found.dataset_type,
            found.source_name or '',
        )
        for found in read_card(card).data.eval_results or []
        if isinstance(found.metric_value, int | float)
    ]


def card_of_tag(config: Config, tag: str) -> str:
    """Render the card of a registered tag.

    Args:
        config: Config of the registered model.
        tag: The tag, without the name.
    """
    name = config.architecture
    full = f'{name}.{tag}'
    cfg: Any = get_pretrained_cfg(full)
    results = []
    file = file_of(full)
    if file and file.top1:
        results = [Result('top1', file.top1, 'imagenet-1k', PUBLISHERS[file.by].figures)]
    return render_card(
        config,
        full,
        full,
        f'{cfg.description} {ABOUT}',
        license=cfg.license,
        results=results,
        base=cfg.hf_hub_id,
        remarks=cfg.notes or (),
        paper=f'{cfg.paper_name}, {cfg.paper_ids}',
        weights_of=_owner(file),
    )


def _owner(file: PublishedFile | None) -> str:
    """Return whose weights a published file has, as the template names them."""
    if file is None:
        return ''
    return 'authors' if file.by == 'timm' else file.by
