"""The house: what stands where, what imports what, what importing does."""

import ast
import json
import signal
import subprocess
from pathlib import Path

import pytest

import timm_res2net
from tests.common import ROOT, python
from timm_res2net.convert import COUNTS

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


def tracked() -> list[str]:
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout: nothing says which files belong to the project')
    done = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_top_level():
    names = {path.split('/')[0] for path in tracked()}
    assert {name for name in names if not name.startswith('.')} <= TOP_LEVEL


def own_imports(path: Path) -> set[str]:
    """What a file imports of the package, at its top or in its functions: folders, files."""
    here, tops = path.relative_to(PACKAGE).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > len(here):
            tops |= {(node.module or alias.name).partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import) and not getattr(node, 'level', 0):
            names = [getattr(node, 'module', None) or alias.name for alias in node.names]
            assert not any(name.split('.')[0] == 'timm_res2net' for name in names), path
    return tops


def test_floors():
    """A file imports only from its own floor and from those above it."""
    floor = {name: FLOORS.index(FILES.get(name, name)) for name in (*FLOORS, *FILES)}
    for path in PACKAGE.rglob('*.py'):
        own = path.relative_to(PACKAGE).with_suffix('').parts[0]
        if own != '__init__':
            assert all(floor[name] <= floor[own] for name in own_imports(path)), path


IMPORT = """
import json, logging, signal, sys, warnings
import timm
from timm.models import get_arch_pretrained_cfgs, list_models, list_modules, model_entrypoint

print('imported timm', file=sys.stderr)  # an old one warns on a new torch
libraries = ('timm', 'torch', 'huggingface_hub', 'safetensors')

def registry(names):
    return {
        name: [repr(model_entrypoint(name)), {k: v.to_dict() for k, v in
               get_arch_pretrained_cfgs(name).items()}] for name in names
    }

def process():
    'Handlers, hooks, filters and loggers, and every attribute of the libraries and their classes.'
    state = {f'signal {n}': signal.getsignal(n) for n in signal.valid_signals()}
    state |= {'warnings': warnings.filters[:], 'finders': sys.meta_path[:], 'path': sys.path[:]}
    state |= {name: getattr(sys, name) for name in dir(sys) if name.endswith('hook')}
    for name in (None, *libraries):
        log = logging.getLogger(name)
        state[f'logger {name}'] = log.level, log.handlers[:], log.filters[:], log.propagate
    for name in loaded:
        if name.partition('.')[0] in libraries:
            for key, value in list(vars(sys.modules[name]).items()):
                if type(value) is type(sys):  # parts that are imported later
                    continue
                state[f'{name}.{key}'] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    state |= {f'{name}.{key}.{k}': id(v) for k, v in vars(value).items()}
                if key.startswith('_global_'):  # torch's hooks of all modules
                    state[f'{name}.{key}'] = repr(value)
    return state

names, modules, loaded = list_models(), list_modules(), set(sys.modules)
before = registry(names)
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
    'unchanged': before == registry(names),
    'modules': sorted(set(list_modules()) - set(modules)),
    'new': sorted(set(list_models()) - set(names)),
    'loaded': sorted({m.split('.')[0] for m in sys.modules} - {m.split('.')[0] for m in loaded}),
}))
"""


def test_importing_is_silent_and_changes_nothing():
    """Nothing of the process, and nothing of timm's but its registry."""
    done = python('-c', IMPORT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith('imported timm\n')
    state = json.loads(done.stdout)  # nothing printed but the answer
    seen = state.pop('seen')
    assert {'torch.nn.modules.module.Module.load_state_dict', f'signal {signal.SIGTERM}'} <= {*seen}
    assert state == {
        'warnings': [],
        'changed': [],
        'unchanged': True,
        'modules': ['hrnet_res2net', 'res2net_zoo'],
        'new': sorted(COUNTS),  # no name of timm's is among them
        # nothing that timm and torch have not loaded already, least of all matplotlib or sklearn
        'loaded': ['timm_res2net'],
    }


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
    assert timm_res2net.__version__ in (version, '0+source')


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
