"""A newcomer's process: it runs code and command lines, and imports only what was installed.

Started as `python -m tests.newcomer` it imports timm, torch and this project once, as with the base
install, then runs each task in a fork of itself, where the installed extras can be imported, too.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
# distributions whose modules have other names, which a missing distribution cannot tell
MODULES = {'scikit-learn': 'sklearn', 'scikit-image': 'skimage'}
# what runs the tests stays importable
RUNNERS = ('pytest', 'pytest-xdist', 'hypothesis', 'packaging')


def distributions(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that an installation brings, as far as they are installed here."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if (name, frozenset(one.extras)) in found:
            continue
        found.add((name, frozenset(one.extras)))
        if name == PROJECT['name']:
            extras = [text for extra in one.extras for text in EXTRAS[extra]]
            todo += map(Requirement, [*PROJECT['dependencies'], *extras])
            continue
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        extras = ['', *one.extras]
        todo += [
            need
            for need in needs
            if need.marker is None or any(need.marker.evaluate({'extra': e}) for e in extras)
        ]
    return {name for name, _ in found}


packages_distributions = cache(metadata.packages_distributions)  # reads every file's name


@cache
def modules(requirements: frozenset[str]) -> frozenset[str]:
    """Modules that can be imported after `pip install .` and the requirements."""
    names = distributions([PROJECT['name'], *requirements])
    declared = {MODULES.get(name, name.replace('-', '_')) for name in names}
    return frozenset(declared).union(
        module
        for module, owners in packages_distributions().items()
        if names & {canonicalize_name(owner) for owner in owners}
    )


def missing(requirements: frozenset[str] = frozenset()) -> list[str]:
    """Modules of the extras that cannot be imported after installing the requirements."""
    everything = frozenset({f'{PROJECT["name"]}[{",".join(EXTRAS)}]', *requirements})
    return sorted(modules(everything) - modules(requirements) - modules(frozenset(RUNNERS)))


class Newcomer:
    """The process.

    Args:
        env: Its environment.
    """

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'tests.newcomer'],
            cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._read() == 'ready'

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError('The process ended; its error is above.')
        return json.loads(line)

    def run(
        self, task: str | Sequence[str], cwd: Path, installed: Iterable[str] = ()
    ) -> tuple[int, str]:
        """Run Python code, or a command line given as a list.

        Long work is left out: the scripts of `benchmarks` stop as soon as they have parsed their
        arguments and found their packages. Nothing is written into the clone.

        Args:
            task: The code or the command line.
            cwd: Where it runs.
            installed: Requirements that were installed besides the package.

        Returns:
            The exit code, and what was printed.
        """
        assert self.process.stdin is not None
        there = sorted(set(missing()) - set(missing(frozenset(installed))))
        asked = {'task': task, 'cwd': str(cwd), 'there': there}
        self.process.stdin.write(json.dumps(asked) + '\n')
        self.process.stdin.flush()
        code, printed = self._read()
        return code, printed

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


# --- in the process -------------------------------------------------------------------------------


def _execute(code: str) -> None:
    warnings.simplefilter('error')  # as in the other tests, see pyproject.toml
    warnings.filterwarnings('ignore', '`torch.jit', FutureWarning)
    warnings.filterwarnings('ignore', '`torch.jit', DeprecationWarning)
    exec(compile(code, 'README.md', 'exec'), {'__name__': '__main__'})


def _stop_before_measuring() -> None:
    """Let the scripts and `benchmarks run` end where the work would begin."""
    from benchmarks import script
    from benchmarks.suite import cells, run

    parse = script.Script.parse

    def parse_and_stop(self: Any, *args: Any) -> None:
        parse(self, *args)
        sys.exit(0)

    def stop(*args: Any) -> None:
        sys.exit(0)

    script.Script.parse = parse_and_stop
    run.start = stop
    # which GPU, cores and compiler the machine has is not the README's matter
    run.refuse_impossible = cells.require_packages


def _call(program: str, *args: str) -> int:
    args = tuple(arg for arg in args if arg != '--commit-results')
    if program == 'timm-res2net':
        from timm_res2net.cli import main

        sys.argv = [program, *args]
        return main(list(args))
    assert program == 'python', program
    if args[0] == '-c':
        _execute(args[1])
        return 0
    _, module, *rest = args
    if module.startswith('benchmarks'):
        _stop_before_measuring()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    return 0


def _work(task: str | list[str]) -> int:
    """Run a task and return the exit code, as Python itself does."""
    try:
        if isinstance(task, list):
            return _call(*task)
        _execute(task)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _fork(task: str | list[str], cwd: str, there: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(printed.fileno(), stream)
            os.chdir(cwd)
            for name in there:
                del sys.modules[name]
            code = _work(task)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read().decode()


def _serve() -> None:
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for name in missing():
        sys.modules[name] = None  # type: ignore[assignment] # no import finds it
    import torch

    # every task would import them
    importlib.import_module('timm_res2net.cli')
    importlib.import_module('benchmarks.suite.run')
    torch.set_num_threads(1)
    builder: Any = sys.modules['timm.models._builder']
    load = builder.load_pretrained

    def offline(model: Any, pretrained_cfg: Any, **kwargs: Any) -> None:
        """Weights that would be downloaded are random."""
        hub_id = pretrained_cfg.get('hf_hub_id') or ''
        if pretrained_cfg.get('file') or hub_id.startswith('me/'):
            load(model, pretrained_cfg, **kwargs)

    builder.load_pretrained = offline
    print(json.dumps('ready'), file=channel, flush=True)
    for line in sys.stdin:
        print(json.dumps(_fork(**json.loads(line))), file=channel, flush=True)


if __name__ == '__main__':
    _serve()
