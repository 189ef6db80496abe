"""Pictures of a teacher's maps: which images, which classes, in which units."""

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from lfi_mmdet.evaluation.teacher_trial import TeacherBatch
from lfi_mmdet.structures import InteractionTargets
from lfi_mmdet.visualization.teacher_maps import TeacherPictures


def make_batch(labels, corner: int) -> TeacherBatch:
    """One image of 8 x 8 pixels; object i covers i + 1 columns; maps on 4 x 4."""
    masks = np.zeros((len(labels), 8, 8), np.uint8)
    for i, mask in enumerate(masks):
        mask[:, : i + 1] = 1
    sample = DetDataSample(metainfo=dict(img_shape=(8, 8)))
    sample.gt_instances = InstanceData(
        labels=torch.tensor(labels, dtype=torch.long), masks=BitmapMasks(masks, 8, 8)
    )
    maps = torch.zeros(1, 2, 4, 16)
    maps[..., corner] = 1
    targets = InteractionTargets(
        maps=maps.unflatten(-1, (4, 4)), present=torch.ones(1, 4, dtype=torch.bool)
    )
    return TeacherBatch(torch.zeros(1, 3, 8, 8), [sample], targets)


@pytest.fixture
def pictures():
    pictures = TeacherPictures(2)
    for reading, corner in (('attention', 0), ('gradient', 15)):
        for labels in ([3], [], [0, 1, 2], [1]):
            pictures.add(reading, make_batch(labels, corner), DetDataPreprocessor())
    return pictures


def test_the_first_images_with_objects_show_their_largest_classes(pictures):
    rows = pictures.rows([('attention', 0, 'a')], 'abcd')
    assert [row.label for row in rows] == ['d', 'c', 'b']
    assert [row.mask.sum() for row in rows] == [8, 24, 16]


def test_each_column_shows_its_reading_in_units_of_the_uniform_map(pictures):
    columns = [('attention', 1, 'a'), ('gradient', 0, 'g')]
    for row in pictures.rows(columns, 'abcd'):
        attention, gradient = row.panels
        assert (attention.title, gradient.title) == ('a', 'g')
        assert attention.values.shape == (8, 8)
        assert attention.values[0, 0] == attention.values.max() == 16
        assert gradient.values[-1, -1] == 16 and gradient.values[0, 0] == 0
