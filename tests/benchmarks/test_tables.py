"""The generated pages, and the figures in READMEs."""

import pytest

from benchmarks import claim, tables
from benchmarks.script import RESULTS

README = ' '.join((RESULTS.parent / 'README.md').read_text().split())


@pytest.mark.parametrize('name', tables.PAGES)
def test_pages_are_what_the_json_says(name):
    """`python -m benchmarks.tables` writes them."""
    assert (RESULTS / f'{name}.md').read_text() == tables.page(name)


def test_pages_are_linked():
    for name in tables.PAGES:
        assert f'results/{name}.md' in README


def test_a_pair_that_was_not_measured():
    with pytest.raises(LookupError, match='main_aligned/infer/eager/fp32') as error:
        claim.find(claim.load_files(), 'main_aligned', batch=3)
    assert 'python -m benchmarks run' in str(error.value)
