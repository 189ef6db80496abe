"""The diagnosis teacher, the teacher's view and presence."""

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from lfi_mmdet.models.teachers import GroundTruthTeacher
from lfi_mmdet.models.teachers.presence import present_texts
from lfi_mmdet.models.teachers.view import TeacherView


def make_sample(masks, labels, shape):
    sample = DetDataSample(metainfo=dict(img_shape=shape))
    sample.gt_instances = InstanceData(labels=torch.tensor(labels), masks=masks)
    return sample


def square(rows: slice, cols: slice, shape=(32, 48)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[rows, cols] = 1
    return mask


@pytest.fixture
def sample():
    masks = np.stack(
        [square(slice(0, 16), slice(0, 24)), square(slice(16, 32), slice(24, 48)),
         square(slice(0, 16), slice(24, 48))]
    )  # fmt: skip
    return make_sample(BitmapMasks(masks, 32, 48), [2, 0, 2], (32, 48))


def maps_of(sample, **kwargs):
    teacher = GroundTruthTeacher(class_names=('a', 'b', 'c'), **kwargs)
    return teacher(torch.zeros(1, 3, 32, 64), [sample], DetDataPreprocessor())


def test_without_blur_a_map_covers_the_masks_of_its_class_evenly(sample):
    targets = maps_of(sample, grid_size=4, blur=(0.0,), floor=0.0)
    assert targets.present.tolist() == [[True, False, True]]
    expected = torch.zeros(4, 4)
    expected[2:, 2:] = 1 / 4
    torch.testing.assert_close(targets.maps[0, 0, 0], expected)
    expected = torch.zeros(4, 4)
    expected[:2] = 1 / 8  # both instances of the class
    torch.testing.assert_close(targets.maps[0, 0, 2], expected)
    torch.testing.assert_close(targets.maps[0, 0, 1], torch.full((4, 4), 1 / 16))


def test_maps_sum_to_one_and_sharpen_from_layer_to_layer(sample):
    maps = maps_of(sample, grid_size=16, blur=(4.0, 2.0, 0.5)).maps[0, :, 0].flatten(1)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3))
    entropy = -(maps * maps.log()).sum(-1)
    assert entropy[0] > entropy[1] > entropy[2]


def test_polygons_give_the_same_maps_as_bitmaps(sample):
    polygons = PolygonMasks([[np.array([24, 16, 48, 16, 48, 32, 24, 32.0])]], 32, 48)
    bitmaps = BitmapMasks(square(slice(16, 32), slice(24, 48))[None], 32, 48)
    a, b = (
        maps_of(make_sample(masks, [0], (32, 48)), grid_size=8).maps
        for masks in (polygons, bitmaps)
    )
    torch.testing.assert_close(a, b)


def test_padding_of_masks_is_cut_off():
    padded = BitmapMasks(square(slice(0, 16), slice(0, 32), (32, 64))[None], 32, 64)
    exact = BitmapMasks(square(slice(0, 16), slice(0, 32), (16, 32))[None], 16, 32)
    a, b = (
        maps_of(make_sample(masks, [0], (16, 32)), grid_size=4).maps
        for masks in (padded, exact)
    )
    torch.testing.assert_close(a, b)


def test_an_image_without_objects_has_finite_maps_and_no_text():
    empty = make_sample(BitmapMasks(np.zeros((0, 8, 8), np.uint8), 8, 8), [], (8, 8))
    empty.gt_instances.labels = empty.gt_instances.labels.long()
    targets = maps_of(empty)
    assert not targets.present.any() and torch.isfinite(targets.maps).all()


def test_missing_masks_are_named():
    sample = DetDataSample(metainfo=dict(img_shape=(8, 8)))
    sample.gt_instances = InstanceData(labels=torch.tensor([0]))
    with pytest.raises(ValueError, match='with_mask=True'):
        maps_of(sample)


def test_a_wrong_blur_is_named():
    with pytest.raises(ValueError, match=r'teacher.blur=\(-1,\)'):
        GroundTruthTeacher(blur=(-1,))


def test_all_texts_can_count_as_present(sample):
    assert present_texts('all', [sample], 3).all()
    assert present_texts('ground_truth', [sample], 3).tolist() == [[True, False, True]]


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
@pytest.mark.parametrize('normalised', [True, False])
def test_the_view_undoes_the_students_preprocessing(bgr_to_rgb, normalised):
    stats = dict(mean=[120.0, 110, 100], std=[50.0, 60, 70]) if normalised else {}
    preprocessor = DetDataPreprocessor(
        **stats, bgr_to_rgb=bgr_to_rgb, pad_size_divisor=32
    )
    pixels = torch.randint(0, 255, (3, 20, 24), dtype=torch.uint8)
    pixels = pixels.float().mean((1, 2), keepdim=True).round().byte().expand(3, 20, 24)
    sample = DetDataSample(metainfo=dict(img_shape=(20, 24)))
    data = preprocessor(dict(inputs=[pixels], data_samples=[sample]), training=True)
    assert data['inputs'].shape == (1, 3, 32, 32)
    view = TeacherView(8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    image = view(data['inputs'], data['data_samples'], preprocessor)
    rgb = image * view.std + view.mean
    expected = pixels.flip(0)[:, :1, :1].float() / 255  # mmdet loads BGR
    torch.testing.assert_close(rgb[0], expected.expand(3, 8, 8), atol=1e-4, rtol=0)
