"""A tiny detector with a teacher, and a reading made by hand."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData

from lfi_mmdet.evaluation import InteractionReading
from lfi_mmdet.models.losses.base import InteractionPair
from tests.tiny import CLASSES, tiny_config_text, write_tiny_coco


@pytest.fixture(scope='module')
def tiny_config(tmp_path_factory) -> Config:
    """Config of a detector for four 64-pixel images, patches of 16 pixels."""
    root = tmp_path_factory.mktemp('tiny')
    write_tiny_coco(root)
    (root / 'tiny.py').write_text(tiny_config_text(root))
    return Config.fromfile(root / 'tiny.py')


@pytest.fixture
def detector(tiny_config):
    model = MODELS.build(tiny_config.model)
    model.set_class_names(CLASSES)
    return model


@pytest.fixture
def make_reading():
    """Build a reading of one 64 x 64 image, 4 x 4 patches and three texts."""

    def build(log_attention, target, masks, present, valid=None, shape=(64, 64)):
        sample = DetDataSample(metainfo=dict(img_shape=shape))
        sample.gt_instances = InstanceData(labels=torch.tensor(list(masks), dtype=int))
        if masks:
            array = np.stack(list(masks.values())).astype(np.uint8)
            sample.gt_instances.masks = BitmapMasks(array, *shape)
        pair = InteractionPair(log_attention, target, torch.zeros(1, 3, 8))
        return InteractionReading(
            inputs=torch.zeros(1, 3, 64, 64),
            data_samples=[sample],
            pairs=[pair],
            layers=[(5, 2)],
            present=torch.tensor([present]),
            grid=(4, 4),
            valid=torch.ones(1, 16, dtype=torch.bool) if valid is None else valid,
            patch_size=16,
        )

    return build
