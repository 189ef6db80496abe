"""Predictions and ground truth are drawn in the same coordinates."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image

from lfi_mmdet.evaluation import interaction_dataloader
from lfi_mmdet.visualization import draw_detections
from lfi_mmdet.visualization.detections import magnify
from tests.tiny import tiny_config_text, write_tiny_coco


@pytest.fixture
def config(tmp_path) -> Config:
    write_tiny_coco(tmp_path)
    (tmp_path / 'tiny.py').write_text(tiny_config_text(tmp_path))
    config = Config.fromfile(tmp_path / 'tiny.py')
    # the test image is not the file's: rescaled predictions would not fit it
    config.val_dataloader.dataset.pipeline[1].scale = (96, 96)
    return config


@pytest.fixture
def model(config):
    config.model.teacher = None
    return MODELS.build(config.model)


def knows_all(inputs, samples, rescale):
    """Predict the ground truth."""
    assert not rescale
    for sample in samples:
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes,
            labels=truth.labels,
            scores=torch.ones(len(truth)),
            masks=torch.from_numpy(truth.masks.to_ndarray()).bool(),
        )
    return samples


def halves(path):
    """Drawn pixels of both columns, without the titles."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB'), float)[40:]
    middle = pixels.shape[1] // 2
    return pixels[:, :middle], pixels[:, -middle:]


def test_right_predictions_look_like_the_ground_truth(config, model, tmp_path):
    loader, meta = interaction_dataloader(config), config.metainfo
    model.train()
    np.random.seed(1)
    state = np.random.get_state()[1]
    draw_detections(
        model, loader, meta, tmp_path / 'none.png', score_thr=1, max_images=2
    )
    assert model.training
    model.predict = knows_all
    draw_detections(model, loader, meta, tmp_path / 'all.png', max_images=2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(2)
    draw_detections(model, loader, meta, tmp_path / 'again.png', max_images=2)
    again = (tmp_path / 'again.png').read_bytes()
    assert again == (tmp_path / 'all.png').read_bytes()
    left, right = halves(tmp_path / 'all.png')
    nothing = halves(tmp_path / 'none.png')[1]
    # scores are written on one side only
    assert np.abs(left - right).mean() < 0.1 * np.abs(nothing - right).mean()


def test_real_predictions_are_drawn_for_the_wanted_number_of_images(
    config, model, tmp_path
):
    loader = interaction_dataloader(config, batch_size=3)
    sizes = []
    for count in (1, 2):
        path = tmp_path / f'{count}.png'
        draw_detections(
            model, loader, config.metainfo, path, max_images=count, score_thr=0
        )
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0]
    assert 1.8 < sizes[1][1] / sizes[0][1] < 2


def test_no_images_are_an_error(config, model, tmp_path):
    with pytest.raises(ValueError, match='no images'):
        draw_detections(model, [], config.metainfo, tmp_path / 'none.png')


def test_small_images_are_enlarged_with_all_that_is_on_them():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    mask = np.array([[[1, 0, 0], [0, 1, 0]]], np.uint8)
    sample = DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.tensor([[0.0, 1, 2, 3]]), masks=BitmapMasks(mask, 2, 3)
        ),
        pred_instances=InstanceData(
            bboxes=torch.tensor([[1.0, 1, 1, 1]]), masks=torch.from_numpy(mask).bool()
        ),
    )
    large, enlarged = magnify(image, sample, side=7)
    assert large.shape == (4, 6, 3)
    np.testing.assert_array_equal(large[::2, ::2], image)
    np.testing.assert_array_equal(large[1::2, 1::2], image)
    assert enlarged.gt_instances.bboxes.tolist() == [[0, 2, 4, 6]]
    assert sample.gt_instances.bboxes.tolist() == [[0, 1, 2, 3]]
    for instances in (enlarged.gt_instances, enlarged.pred_instances):
        np.testing.assert_array_equal(instances.masks.masks[:, ::2, ::2], mask)
        assert instances.masks.masks.sum() == 8
    same, _ = magnify(image, sample, side=2)
    np.testing.assert_array_equal(same, image)
