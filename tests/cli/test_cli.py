"""The command line, as a user meets it."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from tests.common import NAMES, slow_except
from timm_res2net import __version__
from timm_res2net.cli import main
from timm_res2net.convert import COUNTS
from timm_res2net.models import hrnet_res2net
from timm_res2net.models.res2net_zoo import default_cfgs


def run(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'timm_res2net', *args],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2]), **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_list(capsys):
    assert main(['list']) == 0
    lines = capsys.readouterr().out.splitlines()
    models = [line.split('|')[1].strip() for line in lines[2:]]
    cfgs = {**default_cfgs, **hrnet_res2net.default_cfgs}
    assert models == [f'{name}.{tag}' for name in COUNTS for tag in cfgs[name].tags]
    assert set(COUNTS) == set(cfgs)
    row = next(line for line in lines if 'res2net200_vd_26w_4s.ssld_in1k' in line)
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[1:] == ['76.22', '15.71', '85.13', 'apache-2.0']
    assert len({len(line) for line in lines}) == 1


def test_list_filters_and_json(capsys):
    assert main(['list', '*_se', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    listed = {row['model'].split('.')[0] for row in rows}  # each tag is a row
    assert listed == {name for name in NAMES if name.endswith('_se')}
    for row in rows:
        name = row['model'].split('.')[0]
        assert row['params'] == COUNTS[name].params
    assert rows[0]['weights'] == 'hf-hub:timm/res2net50_26w_4s.in1k'
    assert rows[-1]['weights'] == 'in the package'
    assert main(['list', '*.ssld_in1k', '--json']) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_list_by_license(capsys):
    assert main(['list', '--license', 'Apache-2.0', '--json']) == 0
    assert {row['license'] for row in json.loads(capsys.readouterr().out)} == {'apache-2.0'}
    assert main(['list', '--license', 'mit']) == 1
    assert "license 'mit'" in capsys.readouterr().err


def test_list_without_a_match(capsys):
    assert main(['list', 'resnet*']) == 1
    error = capsys.readouterr().err
    assert error.startswith("timm-res2net list: No model matches 'resnet*'.")
    assert '`timm-res2net list`' in error


@pytest.mark.parametrize('name', COUNTS)
def test_info(name, capsys):
    assert main(['info', name]) == 0
    out = capsys.readouterr().out
    assert f'{COUNTS[name].params / 1e6:.2f} M parameters' in out
    assert '[2, 4, 8, 16, 32]' in out
    assert ('pretrained=True' in out) == bool(get_pretrained_cfg(name).has_weights)
    load = out[out.index('model = ') :].splitlines()
    for line in (load[0], load[1]):
        compile(line.strip(), 'info', 'exec')


def test_info_json_and_tag(capsys):
    assert main(['info', 'res2net50_vd_26w_4s.in1k', '--json']) == 0
    known = json.loads(capsys.readouterr().out)
    assert known['model'] == 'res2net50_vd_26w_4s.in1k'
    assert known['top1'] == 79.75
    assert known['tags'] == ['ssld_in1k', 'in1k']
    assert known['arguments']['semantics'] == 'paddle'
    assert known['feature_channels'] == [64, 256, 512, 1024, 2048]
    assert known['weights'].endswith('/dygraph/Res2Net50_vd_26w_4s_pretrained.pdparams')


@pytest.mark.parametrize(
    ('unknown', 'remedy'),
    [
        ('Res2Net50_SE', 'Did you mean res2net50_se'),
        ('*_se', '`timm-res2net list`'),
        ('qqq', '`timm-res2net list`'),
        ('res2net50_26w_4s', '`timm.create_model` makes it'),
        ('res2net50_vd_26w_4s.ssld', 'Use one of ssld_in1k, in1k, or none'),
    ],
)
def test_info_of_an_unknown_model(unknown, remedy, capsys):
    assert main(['info', unknown]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('timm-res2net info: ')
    for part in unknown.split('.'):
        assert f"'{part}'" in captured.err
    assert remedy in captured.err
    assert captured.out == ''


PADDLE = Path(__file__).parents[1] / 'fixtures' / 'paddle.pdparams'


def test_convert(tmp_path, capsys):
    out = tmp_path / 'net'
    assert main(['convert', str(PADDLE), '--out', str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'{PADDLE}: pickled arrays, source paddle'
    assert lines[1].startswith('res2net_custom(layers=[1, 2, 2, 1], ')
    assert '), block semantics paddle, ' in lines[1]
    assert lines[1].endswith(' parameters, 10 classes')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[4:-2]]
    assert ['`out.weight`', '`fc.weight`', '1', 'transposed'] in rows
    assert len({len(line) for line in lines[2:-2]}) == 1
    assert f'all {sum(int(row[2]) for row in rows)} tensors' in lines[-2]
    assert lines[-1] == f"Written: timm.create_model('local-dir:{out}', pretrained=True)"
    assert sorted(p.name for p in out.iterdir()) == [
        'README.md',
        'config.json',
        'model.safetensors',
        'test',  # golden tensors
    ]

    back = tmp_path / 'back.pdparams'
    assert main(['convert', str(out), '--to', 'paddle', '--out', str(back)]) == 0
    assert capsys.readouterr().out.endswith(f'Written to {back}\n')
    assert back.is_file()


def test_convert_looks_only(tmp_path, capsys):
    assert main(['convert', str(PADDLE), '--dry-run', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    notes = found['notes']
    assert notes['source'] == 'paddle'
    assert found['out'] is None
    assert notes['sha256'] == hashlib.sha256(PADDLE.read_bytes()).hexdigest()
    assert {'from': 'out.weight', 'to': 'fc.weight', 'how': 'transposed'} in notes['moved']
    assert main(['convert', str(PADDLE), '--dry-run', '--out', str(tmp_path / 'net')]) == 0
    assert capsys.readouterr().out.endswith('Nothing was written.\n')
    assert list(tmp_path.iterdir()) == []


def test_convert_needs_out_or_dry_run(capsys):
    assert main(['convert', str(PADDLE)]) == 1
    error = capsys.readouterr().err
    assert error.startswith('timm-res2net convert: ')
    assert '--out' in error and '--dry-run' in error


def test_convert_from_an_unknown_source(capsys):
    with pytest.raises(SystemExit):
        main(['convert', str(PADDLE), '--from', 'keras'])
    assert 'invalid choice' in capsys.readouterr().err


@pytest.mark.parametrize('word', ['top1', '=3', 'top1=good'])
def test_a_metric_without_a_number(word, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['push', 'net.pth', 'me/net', '--eval', word])
    assert stop.value.code == 2
    assert f"'{word}' is not METRIC=NUMBER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'value'), [(['--label-names', 'none.txt'], 'none.txt'), ([], 'nothing.pth')]
)
def test_push_of_what_is_not_there(words, value, capsys):
    assert main(['push', 'nothing.pth', 'me/net', *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith('timm-res2net push: ')
    assert value in error
    assert 'Check the path' in error


@pytest.mark.parametrize('key', ['last_linear', 'fc.1', 'head', 'model.classifier'])
def test_convert_names_what_looks_like_a_lost_classifier(key, tmp_path, capsys):
    model = timm.create_model('test_res2net_se', pretrained=True)
    weights = {
        f'{key}{name[2:]}' if name.startswith('fc.') else name: tensor
        for name, tensor in model.state_dict().items()
    }
    weights['decoder.weight'] = torch.zeros(3, 5)
    torch.save(weights, tmp_path / 'net.pth')
    assert main(['convert', str(tmp_path / 'net.pth'), '--dry-run']) == 0
    out = capsys.readouterr().out
    assert 'The model has no classifier' in out
    assert f'look like a classifier, 1: {key}.weight\n' in out
    assert "'fc.weight' and 'fc.bias'" in out


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr('timm_res2net.cli.hub.push_to_hub', interrupt)
    assert main(['push', 'x.pth', 'me/net']) == 130
    assert capsys.readouterr().err == 'timm-res2net push: interrupted. Run it again.\n'


def test_push_looks_only(capsys):
    assert main(['push', str(PADDLE), 'me/net', '--license', 'apache-2.0', '--dry-run']) == 0
    out = capsys.readouterr().out
    assert out.startswith('| file ')
    assert "timm.create_model('hf-hub:me/net', pretrained=True)" in out
    assert out.endswith('\nNothing was sent.\n')


COMMANDS = (
    'list', 'info', 'convert', 'predict', 'show', 'push', 'pull', 'check', 'export', 'measure',
    'run',
)  # fmt: skip


def test_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    out = capsys.readouterr().out
    assert set(re.findall(r'^    (\w+) ', out, re.MULTILINE)) == set(COMMANDS)


SCRIPT = """
import argparse, json, sys
import helper
import timm
assert __name__ == '__main__'
model = timm.create_model('res2net50_se', device='meta')
print(json.dumps([sys.argv, type(model).__name__, helper.VALUE]))
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'helper.py').write_text('VALUE = 5')
    path = folder / 'train.py'
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize('code', slow_except(['3'], ['0', '3']))
def test_run_passes_arguments_and_exit_code(code, script, tmp_path):
    arguments = ['data', '--model', 'x', '-h', '--', '--json', code]
    done = run('run', str(script), *arguments, cwd=tmp_path)
    assert done.returncode == int(code), done.stderr
    assert json.loads(done.stdout) == [[str(script), *arguments], 'Res2Net', 5]


@pytest.mark.slow
@pytest.mark.parametrize('dashes', [[], ['--']])
def test_run_passes_an_exception(dashes, script, tmp_path):
    script.write_text('raise ValueError("of the script")')
    done = run('run', *dashes, str(script), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith('ValueError: of the script\n')
    assert 'Traceback' in done.stderr


def test_run_without_the_script(capsys):
    assert main(['run', 'nothing.py', '--lr', '1']) == 1
    error = capsys.readouterr().err
    assert "There is no script 'nothing.py'. Give the path of a Python file." in error


@pytest.mark.parametrize('command', COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, '--help'])
    assert stop.value.code == 0
    assert f'examples:\n  timm-res2net {command}' in capsys.readouterr().out


def test_usage_errors_exit_with_2(capsys):
    assert main([]) == 2
    for argv in (['nothing'], ['run'], ['list', '--nothing']):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
    assert 'usage: timm-res2net' in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads: the first write fails
    done = subprocess.run(
        [sys.executable, '-m', 'timm_res2net', 'list'],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    os.close(writer)
    assert done.returncode == 0
    assert 'Error' not in done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--version'])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f'timm-res2net {__version__}\n'
