"""Scripts through `timm-res2net run`: timm's train.py, and one on two processes; and Ray Data.

timm's wheel has no scripts: train.json records the real train.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import TINY, python
from tests.integration import record_train
from tests.integration.record_consumers import code_of
from timm_res2net import predict
from timm_res2net.folder.config import DATA
from timm_res2net.prediction import walk_images

RECORD = json.loads(record_train.FILE.read_text())


def start(*words: str, cwd: Path) -> None:
    """Run Python in a process, and wait for its end."""
    done = python(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr


def test_the_record():
    """The real script trained, what it saved went the whole way, and its arguments are read."""
    training = RECORD['training']
    assert training['command'] == f'python {record_train.RUN}'
    assert training['top1'][-1] > 90
    assert training['converted']['architecture'] == record_train.NAME
    assert training['converted']['num_classes'] == len(RECORD['classes'])
    assert training['check'] == ['ok']
    answers = {path.split('/')[0]: label for path, label in training['predicted'].items()}
    assert answers == {name: name for name in RECORD['classes']}
    assert {'model', 'model_kwargs', 'gp', *DATA} <= RECORD['arguments'].keys()
    assert RECORD['arguments']['model_kwargs'] == 'dict'


PARALLEL = """
import timm, torch
from torch import distributed, nn

distributed.init_process_group('gloo')
rank = distributed.get_rank()
torch.manual_seed(rank)  # another head on each rank, until DDP hands out the first one's
model = timm.create_model('test_res2net_se', pretrained=True, num_classes=5)
start = model.fc.weight.detach().clone()
wrapped = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
nn.functional.cross_entropy(wrapped(torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
optimizer.step()
torch.save((start, dict(model.named_parameters())), f'out.{rank}')
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path):
    (tmp_path / 'parallel.py').write_text(PARALLEL)
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    start(*launch, '-m', 'timm_res2net', 'run', 'parallel.py', cwd=tmp_path)
    (first, one), (second, other) = (torch.load(tmp_path / f'out.{rank}') for rank in (0, 1))
    assert not torch.equal(first, second)
    assert all(torch.equal(one[key], value) for key, value in other.items())
    assert not torch.equal(one['fc.weight'], first)  # it has learnt


@pytest.mark.slow
def test_the_recipe_for_ray(tmp_path, monkeypatch):
    """Images of several sizes: the rows are those of `predict`."""
    pytest.importorskip('ray', reason='needs the extra integration')
    from pyarrow import parquet

    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    generator = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    for i in range(200):
        pixels = generator.integers(0, 256, (40 + i % 3, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'photos' / f'{i}.png')
    start('-c', code_of('ray'), cwd=tmp_path)
    rows = parquet.read_table(tmp_path / 'rows').to_pylist()
    found = {Path(row['image']).name: (row['class'], row['probability']) for row in rows}
    expected = {Path(r.image).name: r.top[0] for r in predict(TINY, walk_images([tmp_path]))}
    assert found.keys() == expected.keys()
    for name, (label, share) in expected.items():
        assert found[name] == (label, pytest.approx(share, abs=1e-5))  # float32, in other batches
