"""The recipe of README.md for Ray Data, against `predict`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.common import TINY
from timm_res2net import predict
from timm_res2net.prediction import walk_images

pytest.importorskip('ray', reason='needs the extra integration')


@pytest.mark.slow
def test_the_recipe(tmp_path):
    """200 images of several sizes: the rows of both are the same."""
    generator = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    for i in range(200):
        pixels = generator.integers(0, 256, (40 + i % 3, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'photos' / f'{i}.png')
    page = Path(__file__).with_name('README.md').read_text()
    (recipe,) = re.findall(r'^```python\n(import ray\n.*?)^```', page, re.DOTALL | re.MULTILINE)
    assert len(recipe.splitlines()) <= 20
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, '-c', recipe],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': root, 'RAY_USAGE_STATS_ENABLED': '0'},
        check=True,
        timeout=300,
    )
    from pyarrow import parquet

    rows = parquet.read_table(tmp_path / 'rows').to_pylist()
    found = {Path(row['image']).name: (row['class'], row['probability']) for row in rows}
    expected = {
        Path(r.image).name: r.top[0] for r in predict(TINY, walk_images([tmp_path / 'photos']))
    }
    assert found.keys() == expected.keys()
    for name, (label, share) in expected.items():
        assert found[name][0] == label
        assert found[name][1] == pytest.approx(share, abs=1e-5)  # float32, in other batches
