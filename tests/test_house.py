"""The house: what stands where, what imports what, what importing does."""

import ast
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import timm_res2net
from timm_res2net.convert import COUNTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'timm_res2net'

TOP_LEVEL = {
    'pyproject.toml', 'README.md', 'LICENSE', 'CHANGELOG.md', 'timm_res2net', 'hub_configs',
    'benchmarks', 'tests',
}  # fmt: skip

# A file imports only from its own floor and from those before it in this list.
FLOORS = ('base', 'layers', 'convert', 'models', 'folder', 'hub', 'functions', 'export', 'cli')
FILES = {  # at the package's top
    'files': 'base', 'authors': 'models', 'detection': 'functions',
    'prediction': 'functions', 'drawing': 'functions', '__main__': 'cli',
}  # fmt: skip


# timm's own names, which must not be registered again
TIMMS = (
    'res2net50_26w_4s', 'res2net50_26w_6s', 'res2net50_26w_8s', 'res2net50_48w_2s',
    'res2net50_14w_8s', 'res2net101_26w_4s', 'res2next50', 'res2net50d', 'res2net101d',
    'dla60_res2net', 'dla60_res2next',
)  # fmt: skip


def tracked() -> list[str]:
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout: nothing says which files belong to the project')
    done = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_top_level():
    names = {path.split('/')[0] for path in tracked()}
    assert {name for name in names if not name.startswith('.')} <= TOP_LEVEL


def floor_of(module: str) -> int:
    """Floor of a module, given as in an import: 'layers.fold', 'files'."""
    top = module.partition('.')[0]
    return FLOORS.index(FILES.get(top, top))


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or in its functions."""
    here = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parent = '.'.join(here[: len(here) + 1 - node.level])
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {f'{parent}.{name}' if parent else name for name in names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [getattr(node, 'module', None) or alias.name for alias in node.names]
            assert not any(name.split('.')[0] == 'timm_res2net' for name in names), path
    return found


def test_floors():
    for path in PACKAGE.rglob('*.py'):
        module = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        if module != '__init__':
            for name in own_imports(path):
                assert floor_of(name) <= floor_of(module), (path, name)


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )


IMPORT = """
import atexit, json, logging, signal, sys, threading, warnings
import timm
from timm.models import get_arch_pretrained_cfgs, list_models, list_modules, list_pretrained
from timm.models import model_entrypoint

def snapshot(names):
    return {
        name: [repr(model_entrypoint(name)), {k: v.to_dict() for k, v in
               get_arch_pretrained_cfgs(name).items()}] for name in names
    }

def logger(name):
    found = logging.getLogger(name)
    return found.level, found.handlers[:], found.filters[:], found.propagate, found.disabled

def process():
    'Handlers, hooks, filters and loggers, and every attribute of the libraries and their classes.'
    found = {f'signal {n}': signal.getsignal(n) for n in signal.valid_signals()}
    found |= {'warnings': warnings.filters[:], 'at exit': atexit._ncallbacks()}
    found |= {name: getattr(sys, name) for name in dir(sys) if name.endswith('hook')}
    found |= {'thread': threading.excepthook, 'finders': sys.meta_path[:], 'path': sys.path[:]}
    found |= {f'logger {n}': logger(n) for n in (None, *libraries)}
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] in libraries:
            for key, value in list(vars(module).items()):
                found[f'{name}.{key}'] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    found |= {f'{name}.{key}.{k}': id(v) for k, v in vars(value).items()}
                if key.startswith('_global_'):  # torch's hooks of all modules
                    found[f'{name}.{key}'] = repr(value)
    return found

libraries = ('timm', 'torch', 'huggingface_hub', 'safetensors')
names = list_models()
before, pretrained, modules = snapshot(names), list_pretrained(), list_modules()
in_res2net = list_models(module='res2net')
loaded = set(sys.modules)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    was = process()
    caught.clear()  # what looking at everything warned of
    import timm_res2net
    said = [str(w.message) for w in caught]
    now = process()
print(json.dumps({
    'warnings': said,
    'changed': [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)],
    'seen': [key for key in now if 'load_state_dict' in key or 'SIG' in repr(now[key])],
    'logger': repr(logger('timm_res2net')),
    'unchanged': before == snapshot(names),
    'res2net': in_res2net == list_models(module='res2net'),
    'pretrained': set(pretrained) <= set(list_pretrained()),
    'modules': sorted(set(list_modules()) - set(modules)),
    'new': sorted(set(list_models()) - set(names)),
    'ours': list_models(module='res2net_zoo'),
    'hrnets': list_models(module='hrnet_res2net'),
    'loaded': sorted({m.split('.')[0] for m in set(sys.modules) - loaded}),
}))
"""


def test_importing_is_silent_and_changes_nothing():
    """Nothing of the process, and nothing of timm's but its registry."""
    done = run_python(IMPORT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == run_python('import timm').stderr  # an old timm warns on a new torch
    assert done.stdout.count('\n') == 1  # nothing printed but the answer
    found = json.loads(done.stdout)
    ours = set(COUNTS)
    assert found['warnings'] == []
    assert found['changed'] == []
    assert {'torch.nn.modules.module.Module.load_state_dict', f'signal {signal.SIGTERM}'} <= set(
        found['seen']
    )
    assert found['logger'] == '(0, [], [], True, False)'
    assert found['unchanged']
    assert found['res2net']
    assert found['pretrained']
    assert found['modules'] == ['hrnet_res2net', 'res2net_zoo']
    assert set(found['new']) == {*found['ours'], *found['hrnets']} == ours
    assert not set(TIMMS) & ours
    # nothing that timm and torch have not loaded already, least of all matplotlib or sklearn
    assert found['loaded'] == ['timm_res2net']


def test_what_is_public():
    for name in timm_res2net.__all__:
        assert getattr(timm_res2net, name).__doc__
        assert name not in FILES  # no module has the name of a function


def test_version_is_the_changelogs():
    first = next(
        line for line in (ROOT / 'CHANGELOG.md').read_text().splitlines() if line[:3] == '## '
    )
    version = first.split()[1]
    assert f'version = "{version}"' in (ROOT / 'pyproject.toml').read_text()
    try:
        installed = importlib.metadata.version('timm-res2net')
    except importlib.metadata.PackageNotFoundError:
        installed = '0+source'
    assert timm_res2net.__version__ == installed


def test_nothing_names_this_place():
    """No path of a developer's machine and no package registry's host."""
    words = [
        a + b for a, b in (('/wo', 'rk/'), ('/ro', 'ot/'), ('pypi', '.org'), ('pytho', 'nhosted'))
    ]
    for name in tracked():
        path = ROOT / name
        if path.suffix in ('.png', '.safetensors') or not path.is_file():
            continue
        text = path.read_text(errors='replace')
        assert not [word for word in words if word in text], name
