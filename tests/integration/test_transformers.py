"""transformers reads what is pushed: the same config serves it and timm."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.common import (
    files_of,
    from_folder,
    image,
    network,
    push_to_folder,
    python,
    relative_error,
)
from tests.hub.client import environment
from tests.hub.server import hub

transformers = pytest.importorskip('transformers', reason='needs the extra integration')


@pytest.mark.parametrize('pool', ['avg', 'max'])
def test_auto_classes(pool, tmp_path):
    """AutoModelForImageClassification and AutoImageProcessor of a folder that a push would send."""
    kwargs = {'num_classes': 3, 'global_pool': pool, 'semantics': 'paddle'}
    model = network(**kwargs)
    names = ['cat', 'dog', 'hen']
    data = {'img_size': 48, 'mean': [0.5, 0.4, 0.3], 'std': [0.3, 0.2, 0.1], 'crop_pct': 0.9}
    folder = push_to_folder(model, tmp_path / 'net', label_names=names, data=data)
    read = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert type(read).__name__ == 'TimmWrapperForImageClassification'
    assert read.config.id2label == {0: 'cat', 1: 'dog', 2: 'hen'}
    x = image(48)
    with torch.no_grad():
        assert relative_error(read(x).logits, model(x)) < 1e-6  # float32
    local = timm.create_model(f'local-dir:{folder}')
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(local))
    picture = Image.new('RGB', (50, 40), (200, 30, 90))
    pixels = processor(picture, return_tensors='pt')['pixel_values']
    assert torch.allclose(pixels[0], transform(picture))


# --- without an import of this package ------------------------------------------------------------

# Told: what to load, an image, and a file for the logits. Tells: what else it found.
REMOTE = """
import json, sys
import timm, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

repos, image, out = json.loads(sys.argv[1]), torch.load(sys.argv[2]), sys.argv[3]
told, logits = [], []
for repo in repos:
    AutoImageProcessor.from_pretrained(repo)
    assert told or 'timm_res2net' not in sys.modules  # images need no code
    model = AutoModelForImageClassification.from_pretrained(repo, trust_remote_code=True).eval()
    neck = AutoModel.from_pretrained(repo, trust_remote_code=True).eval()
    with torch.no_grad():
        logits.append(model(image).logits)
        pooled = list(neck(image).pooler_output.shape)
    pipeline('image-classification', model=repo, trust_remote_code=True)
    told.append([type(model).__name__, model.config.id2label[0], pooled])
    model.save_pretrained(f'{out}-saved')
    again = AutoModelForImageClassification.from_pretrained(f'{out}-saved', trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(image).logits, logits[-1])
torch.save(logits, out)
assert 'timm_res2net' in sys.modules and 'tests' not in sys.modules
print('TOLD', json.dumps(told))
"""


def with_module(path: Path, classes: int) -> torch.nn.Module:
    """Write a folder with the module for transformers; return its model."""
    kwargs = {'num_classes': classes, 'semantics': 'paddle', 'global_pool': 'max'}
    model = network(seed=classes, **kwargs)
    names = [f'{path.name} {i}' for i in range(classes)]
    push_to_folder(model, path, label_names=names, remote_code=True)
    return model


@pytest.mark.slow
def test_a_process_that_imports_nothing_of_this_package(tmp_path):
    """A folder and a repository in one process; timm loads the same folders."""
    models = {name: with_module(tmp_path / name, n) for name, n in (('cats', 3), ('dogs', 5))}
    x = image(64)
    torch.save(x, tmp_path / 'x')
    repos = [str(tmp_path / 'cats'), 'me/dogs']
    with hub() as server:
        server.add('me/dogs', files_of(tmp_path / 'dogs'))
        args = json.dumps(repos), str(tmp_path / 'x'), str(tmp_path / 'out')
        env = environment(server.url, tmp_path / 'home')
        done = python('-c', REMOTE, *args, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert 'not supported' not in done.stderr  # by pipelines
    told = json.loads(done.stdout.partition('TOLD ')[2])
    kind = 'TimmWrapperForImageClassification'
    assert told == [[kind, 'cats 0', [64, 192]], [kind, 'dogs 0', [64, 192]]]
    for (name, model), logits in zip(models.items(), torch.load(tmp_path / 'out'), strict=True):
        with torch.no_grad():
            assert relative_error(logits, model(x)) < 1e-6  # float32
            assert torch.equal(from_folder(tmp_path / name)(x), model(x))
