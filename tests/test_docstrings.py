"""Every name of the public API has a docstring that ends in an example, which runs offline."""

import ast
import doctest
import importlib.util
import inspect
import itertools
import sys

import pytest

import timm_res2net


def docstring(name: str) -> str:
    """The docstring of a function or class, or the string below the assignment of a constant."""
    value = getattr(timm_res2net, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return inspect.getdoc(value) or ''
    for module in [m for key, m in sys.modules.items() if key.startswith('timm_res2net.')]:
        for statement, below in itertools.pairwise(ast.parse(inspect.getsource(module)).body):
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
                return ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ''
    return ''


@pytest.mark.parametrize('name', timm_res2net.__all__)
def test_the_example_runs(name, tmp_path, monkeypatch):
    if name == 'show' and importlib.util.find_spec('matplotlib') is None:
        pytest.skip('needs the extra plots')
    monkeypatch.chdir(tmp_path)
    text = docstring(name).rstrip()
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert test.examples, f'the docstring of {name} has no example'
    end = text.splitlines()[test.examples[-1].lineno :]
    assert '' not in end, f'the docstring of {name} goes on after its example: {end}'
    report: list[str] = []
    failed, _ = doctest.DocTestRunner().run(test, out=report.append)
    assert not failed, ''.join(report)
