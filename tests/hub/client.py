"""The real client of the Hub, in processes of its own: it reads its settings as it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_LOOP = """
import contextlib, io, json, os, sys, time, types
channel = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)
import timm, torch, timm_res2net
from timm_res2net import hub
from timm_res2net.cli.frame import explain
torch.set_num_threads(1)
# the client waits less between its tries, of which there are as many
from huggingface_hub.utils import _http
_http.time = types.SimpleNamespace(**vars(time))
_http.time.sleep = lambda seconds: time.sleep(min(seconds, 0.01))
channel.write('ready\\n')
channel.flush()
for line in sys.stdin:
    asked = json.loads(line)
    scope = dict(asked['args'], timm=timm, torch=torch, hub=hub, os=os)
    told = {}
    try:
        exec(asked['code'], scope)
        told['answer'] = scope.get('answer')
    except Exception as error:
        told['error'] = [type(error).__name__, str(error), explain(error)]
    channel.write(json.dumps(told) + '\\n')
    channel.flush()
"""


class RemoteError(Exception):
    """An exception of the other process.

    Attributes:
        kind: The name of its type.
        text: Its text.
        line: What the command line prints of it.
    """

    def __init__(self, kind: str, text: str, line: str) -> None:
        super().__init__(f'{kind}: {text}')
        self.kind, self.text, self.line = kind, text, line


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a client: a loopback Hub, a cache of its own, one thread."""
    ours = {
        'HF_ENDPOINT': endpoint,
        'HF_HOME': str(home),
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_TOKEN': 'hf_write',
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith('HF_')}
    return {**kept, **ours, **more}


def command(*args: str) -> list[str]:
    """The words of a command line."""
    return [sys.executable, '-m', 'timm_res2net', *args]


def without_override(argv: list[str]) -> list[str]:
    """A command for which read-only folders are read-only, even for root."""
    if os.geteuid():
        return argv
    drop = ['--bounding-set=-dac_override', '--inh-caps=-dac_override', '--ambient-caps=-all']
    return ['setpriv', *drop, '--', *argv]


def start(env: dict[str, str], code: str, *args: str) -> subprocess.Popen:
    """A process that runs code."""
    return subprocess.Popen(
        [sys.executable, '-c', code, *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Client:
    """A process with timm, this package and its `hub` imported, which runs what it is given."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-c', _LOOP],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == 'ready'

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, code: str, **args: Any) -> Any:
        """What the code leaves in `answer`.

        Args:
            code: Python, with `timm`, `torch`, `hub` and `os` there.
            args: Further names, with JSON values.

        Raises:
            RemoteError: The code raised.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({'code': code, 'args': args}) + '\n')
        self.process.stdin.flush()
        told = json.loads(self._read())
        if 'error' in told:
            raise RemoteError(*told['error'])
        return told['answer']

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
