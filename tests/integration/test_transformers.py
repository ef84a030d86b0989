"""transformers reads what is pushed: the same config serves it and timm."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.common import image, randomise, relative_error
from tests.hub.client import environment
from tests.hub.server import hub
from timm_res2net import push_to_hub

pytest.importorskip('transformers', reason='needs the extra integration')

AUTO = """
import json, sys
import timm_res2net, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

repo, image, out = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(repo).eval()
processor = AutoImageProcessor.from_pretrained(repo)
with torch.no_grad():
    logits = model(torch.load(image)).logits
    batch = processor(Image.new('RGB', (50, 40), (200, 30, 90)), return_tensors='pt')
    torch.save([logits, batch['pixel_values']], out)
print(json.dumps([model.config.id2label, type(model).__name__]))
"""


@pytest.mark.parametrize('where', ['folder', 'hub'])
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
    (folder / 'config.json').write_text(json.dumps(done.config))
    (folder / 'README.md').write_text(done.card)
    save_file(model.state_dict(), folder / 'model.safetensors', {'format': 'pt'})
    x = image(48)
    torch.save(x, tmp_path / 'x')
    with hub() as server:
        server.add('me/net', {p.name: p.read_bytes() for p in folder.iterdir()})
        repo = 'me/net' if where == 'hub' else str(folder)
        done = subprocess.run(
            [sys.executable, '-c', AUTO, repo, str(tmp_path / 'x'), str(tmp_path / 'out')],
            env=environment(server.url, tmp_path / 'home'),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert (server.count('GET /cdn') == 1) == (where == 'hub')
    labels, kind = json.loads(done.stdout)
    assert labels == {'0': 'cat', '1': 'dog', '2': 'hen'}
    assert kind == 'TimmWrapperForImageClassification'
    logits, pixels = torch.load(tmp_path / 'out')
    with torch.no_grad():
        assert relative_error(logits, model(x)) < 1e-6  # float32
    from PIL import Image

    local = timm.create_model(f'local-dir:{folder}')
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(local))
    assert torch.allclose(pixels[0], transform(Image.new('RGB', (50, 40), (200, 30, 90))))
