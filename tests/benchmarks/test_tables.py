"""The generated pages, and the figures in READMEs."""

from pathlib import Path

import pytest

from benchmarks import (
    changing_sizes,
    claim,
    forms,
    predict_folder,
    quantize,
    readme,
    receptive_field,
    tables,
)
from benchmarks.script import RESULTS, ROOT, load
from benchmarks.suite import answer
from benchmarks.trainings import train_detector


def words(path: Path) -> str:
    """Text of a file on one line."""
    return ' '.join(path.read_text().split())


README = words(RESULTS.parent / 'README.md')
TRAININGS = words(RESULTS.parent / 'trainings' / 'README.md')
SCRIPTS = (changing_sizes, forms, predict_folder, quantize, receptive_field, train_detector)
FILES = claim.load_files()


def test_pages_and_sentences_are_what_the_json_says(tmp_path, capsys):
    """`python -m benchmarks.tables` writes the pages."""
    folder = tmp_path / 'a' / 'b'
    tables.main(['--out', str(folder)])
    for name in tables.PAGES:
        assert (folder / f'{name}.md').read_bytes() == (RESULTS / f'{name}.md').read_bytes()
        assert f'results/{name}.md' in README
    capsys.readouterr()
    claim.main([])
    sentences = capsys.readouterr().out.splitlines()
    assert len(sentences) == len(claim.SENTENCES)
    assert all(sentence.removeprefix('- ') in README for sentence in sentences)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.__name__)
def test_the_readmes_on_the_scripts(script):
    _, _, name = script.__name__.rpartition('.')
    page = TRAININGS if '.trainings.' in script.__name__ else README
    assert script.sentence(load(name)) in page


def test_figures_of_others_are_named_as_theirs():
    assert answer.published() in README
    for entry in answer.read_published().values():
        assert entry['source'] in (RESULTS / 'claim.md').read_text()
        assert all(0.5 < ratio < 2 for ratio in entry['figures'].values())
    paper = answer.read_published()['the paper']
    base, ours = paper['milliseconds'].values()
    assert paper['figures']['runtime of Table 3'] == round(ours / base, 2)


def test_the_top_readme_and_that_of_export():
    """The claim, the table of models with published accuracies, and the table of forms."""
    page = (ROOT / 'README.md').read_text()
    assert len(page.splitlines()) <= 150
    section = ' '.join(page.split()).split('about 20 % slower than ResNet"')[1].split(' ## ')[0]
    for text in (claim.main_pair(FILES), claim.swap(FILES), 'benchmarks/README.md'):
        assert text in section
    assert readme.models_table(load('readme')) in page
    export = (ROOT / 'timm_res2net' / 'export' / 'README.md').read_text()
    assert forms.guide(load('forms'), load('quantize'), 'res2net50_26w_4s') in export


def test_rows_of_the_claim():
    with pytest.raises(LookupError, match=r"'main'.*'batch': 3.* was not measured. `python -m"):
        claim.find(FILES, 'main', batch=3)
    # a pair that is no pair any more stays readable
    assert claim.find(FILES, 'main_aligned')['models']['baseline'] == 'resnet50'
