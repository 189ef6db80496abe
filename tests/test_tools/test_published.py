"""Models that are published in the repository."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmdet.apis import DetInferencer
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config

from lfi_mmdet.engine.model_zoo import fetch, read_index
from lfi_mmdet.shipped import shipped_root
from tests.test_tools.conftest import call_tool

PUBLISHED = [model for model in read_index().values() if model.weights is not None]
#: Bytes of all weights together, which every clone has to fetch
MOST = 16 * 2**20


@pytest.fixture(params=PUBLISHED, ids=lambda model: model.name)
def model(request):
    return request.param


def record_of(model):
    folder = (shipped_root() / model.weights).parent
    return json.loads((folder / f'{model.name}.json').read_text())


def test_there_is_a_detector_with_lfi_and_its_twin_and_neither_is_large():
    names = {model.name for model in PUBLISHED}
    assert 'mask-rcnn_vit-mini_shapes' in names
    assert 'mask-rcnn_vit-mini_lfi-pretrained-joint_shapes' in names
    sizes = [(shipped_root() / model.weights).stat().st_size for model in PUBLISHED]
    assert sum(sizes) < MOST


def test_weights_are_those_of_index_and_record(model, tmp_path):
    path = fetch(model, tmp_path)
    record = record_of(model)
    assert record['sha256'] == model.sha256 and record['file'] == path.name
    content = torch.load(path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}


def test_results_of_the_index_are_those_of_the_record(model):
    metrics = record_of(model)['metrics']
    metafile = yaml.safe_load((shipped_root() / 'configs/lfi/metafile.yml').read_text())
    (entry,) = (m for m in metafile['Models'] if m['Name'] == model.name)
    told = {
        name: value
        for result in entry['Results']
        for name, value in result['Metrics'].items()
    }
    assert told == {
        'box AP': round(100 * metrics['coco/bbox_mAP'], 1),
        'mask AP': round(100 * metrics['coco/segm_mAP'], 1),
    }


def test_configs_name_no_place_of_a_machine(model):
    path = (shipped_root() / model.weights).parent / f'{model.name}.py'
    content = torch.load(shipped_root() / model.weights, weights_only=True)
    for text in (path.read_text(), content['meta']['cfg']):
        assert "'/" not in text and '"/' not in text
        assert Config.fromstring(text, '.py').model.type.endswith('MaskRCNN')


def test_the_example_loads_weights_that_there_are():
    text = (shipped_root() / 'configs/lfi/README.md').read_text()
    (name,) = re.findall(r"'checkpoints/(\S+\.pth)'", text)
    assert (shipped_root() / 'configs/lfi/published' / name).is_file()


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """New scenes like those of the training."""
    root = tmp_path_factory.mktemp('scenes')
    call_tool(
        'make_shapes', root, '--size', 64, '--max-objects', 3, '--min-size', 0.3,
        '--clutter', 0.15, '--typical-colours', 0.9, '--train', 1, '--val', 30,
        '--unlabeled', 1, '--seed', 4321,
    )  # fmt: skip
    return root


def test_a_published_model_finds_objects_in_new_scenes(model, scenes):
    found = DetInferencer(weights=str(shipped_root() / model.weights), device='cpu')
    content = json.loads((scenes / 'annotations/instances_val.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    classes = found.model.dataset_meta['classes']
    right = total = 0
    for image in content['images']:
        pixels = cv2.imread(str(scenes / 'val' / image['file_name']))
        (told,) = found(pixels, no_save_vis=True)['predictions']
        boxes = torch.tensor(told['bboxes']).reshape(-1, 4)[:10]
        for one in content['annotations']:
            if one['image_id'] != image['id']:
                continue
            x, y, w, h = one['bbox']
            overlap = bbox_overlaps(torch.tensor([[x, y, x + w, y + h]]), boxes)[0]
            same = np.array(
                [classes[i] == names[one['category_id']] for i in told['labels']]
            )[:10]
            right += bool((overlap.numpy()[same] > 0.5).any())
            total += 1
    assert right / total > 0.3
