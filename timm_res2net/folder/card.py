"""The model card: the README.md of a folder, for its reader and for the Hub."""

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..convert import FILES, file_of
from ..layers.text import table
from .config import MODES, MODULE, Config, timm_names
from .folder import INSTALL
from .model import Model
from .target import Target

_TEMPLATE = Path(__file__).with_name('card.md.jinja')
_REGION = re.compile(
    r'<!-- begin of the text that timm_res2net generates.*?<!-- end of the text that timm_res2net '
    r'generates -->',
    re.DOTALL,
)

_ABOUT = (
    'A Res2Net block splits its channels and convolves the splits one after the other, so that one '
    'block has several receptive fields.'
)
_METRICS = {'top1': 'Top-1 accuracy', 'top5': 'Top-5 accuracy', 'accuracy': 'Accuracy'}
PERCENT = tuple(_METRICS)
"""Metrics that are given in percent."""

_URLS = {file.figures: file.figures_url for file in FILES if file.figures}


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


def accuracy(metric: str, value: float, dataset: str, source: str = '') -> EvalResult:
    """Return a measured or published accuracy, as the metadata of a card holds it.

    Args:
        metric: 'top1', 'top5', 'accuracy', or the name of another metric.
        value: Its value; percent for the first three.
        dataset: Name of the data set on the Hub.
        source: Who published it; '' for the owner of the weights.
    """
    return EvalResult(
        task_type='image-classification',
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type='accuracy' if metric in _METRICS else metric,
        metric_name=_METRICS.get(metric, metric),
        metric_value=value,
        source_name=source or None,
        source_url=_URLS.get(source) or None,
    )


def _facts(model: Model) -> dict[str, str]:
    """Return the rows of a card's table of facts.

    Multiply-accumulates are half of the operations that `torch.utils.flop_counter` counts.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config = model.config
    net: Any = copy.deepcopy(model.net).to('meta').float().eval()
    parameters = sum(p.numel() for p in net.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, *config.input_size, device='meta'))
    return {
        'architecture': f'`{config.network}`',
        'parameters': f'{parameters / 1e6:.2f} M',
        'multiply-accumulates': f'{counter.get_total_flops() / 2e9:.2f} G at the image size',
        'image size': ' × '.join(map(str, config.input_size[1:])) + ' px',
        'classes': f'{config.num_classes:,}' if config.num_classes else 'none, features only',
        'block semantics': f'`{config.semantics}`',
        'feature levels': ', '.join(
            f'{level["num_chs"]} channels at stride {level["reduction"]}'
            for level in net.feature_info
        ),
    }


def _results_table(results: Sequence[EvalResult]) -> str:
    rows = [
        (
            result.dataset_name.replace('|', '/'),
            str(result.metric_name or result.metric_type).replace('|', '/'),
            f'{result.metric_value:g}',
            result.source_name or 'the owner of the weights',
        )
        for result in results
    ]
    return table(('data set', 'metric', 'value', 'published by'), rows)


def with_card(
    model: Model,
    load: str,
    *,
    license: str | None = None,
    license_text: str = '',
    results: Sequence[EvalResult] = (),
    base: str | None = None,
    remarks: Sequence[str] = (),
    paper: str = '',
    weights_of: str = '',
    keep_results: bool = True,
) -> Model:
    """Return a model with a new card, into which its owner's text goes.

    Args:
        model: The model. Its card is its owner's, or ''.
        load: First argument of `timm.create_model`, such as 'hf-hub:me/my_res2net'.
        license: Identifier of the license for the Hub; None if unknown.
        license_text: The text on the license; by default that of `weights_of`, or the identifier.
        results: Accuracies to show.
        base: Repository whose weights the model starts from.
        remarks: Further sentences, each an item of a list.
        paper: The paper, with its identifier.
        weights_of: Whose weights they are, for their license and what to cite: 'authors' of
            Res2Net, 'PaddleClas', 'MindCV', or '' for anyone else's.
        keep_results: Keep the results of the owner's card that `results` does not state.

    Raises:
        ValueError: The metadata of the model's card cannot be read.
    """
    config = model.config
    own = config.architecture not in timm_names()
    where, _, repo = load.partition(':')
    repo, _, revision = repo.partition('@') if where == 'hf-hub' else (repo, '', '')
    title = (repo or where).rpartition('/')[2]
    task = 'image-classification' if config.num_classes else 'image-feature-extraction'
    metadata: Any = ModelCardData(
        library_name='timm',
        license=license,
        pipeline_tag=task,
        tags=[task, 'timm', 'res2net', 'transformers'],
        datasets=list(dict.fromkeys(result.dataset_type for result in results)) or None,
        base_model=base,
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    auto_class = 'AutoModelForImageClassification' if config.num_classes else 'AutoModel'
    card = ModelCard.from_template(
        metadata,
        template_str=re.sub(r'(\{% .*? %\})\n', r'\1', _TEMPLATE.read_text(encoding='utf-8')),
        title=title,
        summary=f'{config.pretrained_cfg.get("description") or config.architecture} {_ABOUT}',
        remarks=remarks,
        paper=paper,
        origin=config.pretrained_cfg.get('origin_url'),
        imports='import timm, timm_res2net' if own else 'import timm',
        load=load,
        mode=MODES.get(config.input_size[0]) if config.num_classes else None,
        top=min(5, config.num_classes),
        multi_label=config.problem_type is not None,
        pools=bool(config.global_pool),
        own=own,
        facts=table(('what', ''), _facts(model).items()),
        results=_results_table(results) if results else '',
        published=any(result.source_name for result in results),
        license_text=license_text,
        weights_of=weights_of,
        se=config.model_args.get('attn_layer') == 'se',
        install=INSTALL,
        auto_class=auto_class if config.remote_code else '',
        module=MODULE,
        repo=repo,
        revision=f", revision='{revision}'" if revision else '',
    )
    text = str(card).rstrip('\n') + '\n'
    return replace(model, card=merge_card(text, model.card, keep_results) if model.card else text)


def merge_card(new: str, old: str, keep_results: bool = True) -> str:
    """Put the generated text and metadata of a new card into an old one.

    The rest of the old card stays. If it has no generated text, it keeps all of its text.

    Args:
        new: A generated card.
        old: A card.
        keep_results: Keep the results of the old card that the new one does not state.

    Raises:
        ValueError: The metadata of the old card cannot be read.
    """
    ours, theirs = read_card(new), read_card(old)
    if keep_results and ours.data.eval_results and theirs.data.eval_results:
        stated = set(map(key_of, ours.data.eval_results))
        others = [result for result in theirs.data.eval_results if key_of(result) not in stated]
        ours.data.eval_results = [*others, *ours.data.eval_results]
    data, kept = ours.data.to_dict(), theirs.data.to_dict()
    if not keep_results:
        kept.pop('model-index', None)
    merged = {**kept, **data}
    for key in ('tags', 'datasets'):
        lists = (v if isinstance(v, list) else [v] for v in (kept.get(key), data.get(key)) if v)
        if both := [*itertools.chain(*lists)]:
            merged[key] = list(dict.fromkeys(map(str, both)))
    part = _REGION.search(ours.text)
    assert part is not None  # the template has it
    text = _REGION.sub(lambda _: part[0], theirs.text.strip('\n'), count=1)
    return f'---\n{type(ours.data)(**merged).to_yaml()}\n---\n{text}\n'


def authors_card(folder: str, hub: str, card: str | None, repo: str) -> str:
    """Return the card whose author's text stays, the folder's or the Hub's ('' without any).

    `card` says which, 'folder' or 'hub'. A ValueError says that it is None and the texts differ.
    """
    if card == 'folder' or not hub:
        return folder
    if card == 'hub' or not folder or owners_text(folder) in ('', owners_text(hub)):
        return hub
    raise ValueError(
        f"The author's text on the folder's card and on the card of {repo} differ. Say which one "
        "stays: card='folder' or card='hub' (--card)."
    )


def updated_card(
    model: Model,
    old: str,
    hub: str,
    keeps_weights: bool,
    target: Target,
    measured: Sequence[EvalResult],
) -> tuple[Model, list[str]]:
    """Return a model with its card for the Hub, and notes on what was removed from it.

    The author's text of the card `old` stays. Results belong to weights: those on the Hub's card
    stay as long as its weights do.
    """
    keep = keeps_weights or old == model.card
    shown, notes = results_of(model.card or (hub if keep else '')), []
    if not keep and not model.card and results_of(hub):
        notes.append('The results on the card were of other weights and were removed.')
    branch = '' if target.revision in (None, 'main') else f'@{target.revision}'
    carded = with_card(
        replace(model, card=old),
        f'hf-hub:{target.value}{branch}',
        license=model.config.license,
        keep_results=keep,
        results=[*{key_of(result): result for result in (*shown, *measured)}.values()],
    )
    return carded, notes


def key_of(result: EvalResult) -> tuple[Any, ...]:
    """Return what a result is of: data set and metric."""
    return result.dataset_type, result.metric_type, result.metric_name


def is_generated(card: str) -> bool:
    """Return whether a card has the text that this package generates."""
    return bool(_REGION.search(card))


def owners_text(card: str) -> str:
    """Return the text of a card outside of the generated part."""
    return _REGION.sub('', read_card(card).text).strip()


def license_of(card: str) -> str | None:
    """Return the license that the metadata of a card names; several separated by commas."""
    license = read_card(card).data.license
    return ', '.join(map(str, license)) if isinstance(license, list) else license


def results_of(card: str) -> list[EvalResult]:
    """Return the numeric results that the metadata of a card names.

    Raises:
        ValueError: The metadata cannot be read.
    """
    results = read_card(card).data.eval_results or []
    return [result for result in results if isinstance(result.metric_value, int | float)]


def of_tag(net: Any) -> Model:
    """Return a registered model of this package with its config and card.

    Args:
        net: The model, from `timm.create_model('NAME.TAG')`.
    """
    cfg = net.pretrained_cfg
    full = f'{cfg["architecture"]}.{cfg["tag"]}'
    config = Config.of(net, cfg['architecture'], cfg)
    file = file_of(full)
    results, owner = [], ''
    if file:
        owner = 'authors' if file.by == 'timm' else file.by
        if file.top1:
            results = [accuracy('top1', file.top1, 'imagenet-1k', file.figures)]
    return with_card(
        Model(net, config),
        full,
        license=cfg.get('license'),
        results=results,
        base=cfg.get('hf_hub_id'),
        remarks=cfg.get('notes') or (),
        paper=f'{cfg["paper_name"]}, {cfg["paper_ids"]}',
        weights_of=owner,
    )
