"""transformers reads what is pushed: the same config serves it and timm."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.common import image, randomise, relative_error, slow_except
from tests.hub.client import environment
from tests.hub.server import hub
from timm_res2net import push_to_hub

transformers = pytest.importorskip('transformers', reason='needs the extra integration')

PROCESS = """
import sys, torch
from tests.integration.test_transformers import read

repo, image, out = sys.argv[1:]
torch.save(read(repo, torch.load(image)), out)
"""


def read(repo: str, x: torch.Tensor) -> dict:
    """The automatic classes of a repository: logits for x, and a prepared image."""
    model = transformers.AutoModelForImageClassification.from_pretrained(repo).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(repo)
    with torch.no_grad():
        logits = model(x).logits
    pixels = processor(picture(), return_tensors='pt')['pixel_values']
    labels = model.config.id2label
    return {'logits': logits, 'pixels': pixels, 'labels': labels, 'class': type(model).__name__}


def picture() -> Image.Image:
    return Image.new('RGB', (50, 40), (200, 30, 90))


@pytest.mark.parametrize('where', slow_except(['folder'], ['folder', 'hub']))
@pytest.mark.parametrize('pool', ['avg', 'max'])
def test_auto_classes(where, pool, tmp_path):
    """AutoModelForImageClassification and AutoImageProcessor, from a folder and from the Hub."""
    kwargs = {'num_classes': 3, 'in_chans': 3, 'global_pool': pool, 'semantics': 'paddle'}
    model = randomise(timm.create_model('test_res2net_se', **kwargs)).eval()
    names = ['cat', 'dog', 'hen']
    data = {'img_size': 48, 'mean': [0.5, 0.4, 0.3], 'std': [0.3, 0.2, 0.1], 'crop_pct': 0.9}
    done = push_to_hub(model, 'me/net', license='mit', label_names=names, data=data, dry_run=True)
    folder = tmp_path / 'net'
    folder.mkdir()
    (folder / 'config.json').write_text(done.config.to_json())
    (folder / 'README.md').write_text(done.card)
    save_file(model.state_dict(), folder / 'model.safetensors', {'format': 'pt'})
    x = image(48)
    found = read(str(folder), x) if where == 'folder' else read_from_hub(folder, x, tmp_path)
    assert found['labels'] == {0: 'cat', 1: 'dog', 2: 'hen'}
    assert found['class'] == 'TimmWrapperForImageClassification'
    with torch.no_grad():
        assert relative_error(found['logits'], model(x)) < 1e-6  # float32
    local = timm.create_model(f'local-dir:{folder}')
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(local))
    assert torch.allclose(found['pixels'][0], transform(picture()))


def read_from_hub(folder: Path, x: torch.Tensor, tmp_path: Path) -> dict:
    """`read` in a process, from a server of a folder's files."""
    torch.save(x, tmp_path / 'x')
    with hub() as server:
        server.add('me/net', {p.name: p.read_bytes() for p in folder.iterdir()})
        done = subprocess.run(
            [sys.executable, '-c', PROCESS, 'me/net', str(tmp_path / 'x'), str(tmp_path / 'out')],
            env=environment(server.url, tmp_path / 'home', HF_HUB_DISABLE_XET='1'),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert server.count('GET /cdn') == 1
    return torch.load(tmp_path / 'out')
