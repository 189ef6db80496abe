"""The diagnosis teacher, the teacher's view and presence."""

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from lfi_mmdet.models.teachers import GroundTruthTeacher
from lfi_mmdet.models.teachers.corruption import content_points
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
    images = torch.zeros(1, 3, 32, 64)
    return teacher(images, [sample], DetDataPreprocessor(), compact=False)


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


# -- faults in doses -------------------------------------------------------------------
NAMES = ('a', 'b', 'c', 'd')
DOSES = (0.0, 0.25, 0.5, 0.75, 1.0)


def scene(img_id: int, num_objects: int = 3, side: int = 64):
    """An image with squares of different classes in random places."""
    random = np.random.default_rng(img_id)
    masks = np.zeros((num_objects, side, side), np.uint8)
    for mask in masks:
        x, y = random.integers(0, side - 16, 2)
        mask[y : y + 16, x : x + 16] = 1
    labels = random.permutation(len(NAMES))[:num_objects].tolist()
    sample = make_sample(BitmapMasks(masks, side, side), labels, (side, side))
    sample.set_metainfo(dict(img_id=img_id, ori_shape=(side, side)))
    return sample


def targets_of(samples, **kwargs):
    kwargs = dict(grid_size=16, blur=(2.0, 0.5)) | kwargs
    teacher = GroundTruthTeacher(class_names=NAMES, **kwargs)
    images = torch.zeros(len(samples), 3, 64, 64)
    return teacher(images, samples, DetDataPreprocessor(), compact=False)


def pointing(maps, samples) -> float:
    """Share of maps with their peak on the right object; a flat map has no peak."""
    hits = []
    for one, sample in zip(maps, samples):
        masks = torch.from_numpy(sample.gt_instances.masks.to_ndarray())
        for label, mask in zip(sample.gt_instances.labels.tolist(), masks):
            values = one[label]
            y, x = divmod(int(values.argmax()), values.shape[-1])
            peaked = values.max() > values.min() + 1e-6
            hits.append(bool(peaked and mask[4 * y + 2, 4 * x + 2]))
    return sum(hits) / len(hits)


@pytest.mark.parametrize('fault', ['noise', 'confusion', 'missing'])
def test_the_larger_the_dose_the_fewer_maps_point_at_their_object(fault):
    samples = [scene(i, num_objects=1 + i % 3) for i in range(40)]
    accuracy = [
        pointing(targets_of(samples, **{fault: dose}).maps[:, -1], samples)
        for dose in DOSES
    ]
    assert accuracy[0] == 1
    assert all(more > less for more, less in zip(accuracy, accuracy[1:])), accuracy
    assert accuracy[-1] < 0.3


def test_without_a_dose_maps_are_those_of_the_masks_to_the_bit():
    samples = [scene(i) for i in range(3)]
    for sample in samples:
        sample.pop('img_id'), sample.pop('ori_shape')  # nobody asks for them
    plain = targets_of(samples)
    dosed = targets_of(samples, noise=0.0, confusion=0.0, missing=0.0, seed=5)
    assert torch.equal(plain.maps, dosed.maps) and plain.scores is None
    mask = torch.from_numpy(samples[0].gt_instances.masks.to_ndarray()[:1])
    own = torch.nn.functional.avg_pool2d(mask.float(), 4)
    label = int(samples[0].gt_instances.labels[0])
    exact = targets_of(samples, blur=(0.0,), floor=0.0).maps[0, 0, label]
    assert torch.equal(exact, own[0] / own.sum())


def test_the_same_image_has_the_same_faults_in_any_batch_and_state_of_chance():
    doses = dict(noise=0.5, confusion=0.5, missing=0.3)
    samples = [scene(i) for i in range(6)]
    together = targets_of(samples, **doses)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    for i, sample in enumerate(samples):
        alone = targets_of([sample], **doses)
        assert torch.equal(alone.maps[0], together.maps[i])
        assert torch.equal(alone.present[0], together.present[i])
    assert torch.equal(torch.get_rng_state(), state)
    other = targets_of(samples, **doses, seed=1)
    assert not torch.equal(other.maps, together.maps)


def flipped(sample):
    masks = sample.gt_instances.masks.flip('horizontal')
    mirror = make_sample(masks, sample.gt_instances.labels.tolist(), sample.img_shape)
    mirror.set_metainfo({**sample.metainfo, 'flip': True})
    mirror.set_metainfo(dict(flip_direction='horizontal'))
    return mirror


def cropped(sample):
    """The lower right quarter, enlarged to the whole image."""
    array = sample.gt_instances.masks.to_ndarray()[:, 32:, 32:]
    masks = BitmapMasks(array.repeat(2, -1).repeat(2, -2), 64, 64)
    crop = make_sample(masks, sample.gt_instances.labels.tolist(), (64, 64))
    matrix = np.array([[2, 0, -64], [0, 2, -64], [0, 0, 1]], np.float32)
    crop.set_metainfo({**sample.metainfo, 'homography_matrix': matrix})
    return crop


@pytest.mark.parametrize('objects', [1, 3])
def test_faults_are_flipped_with_the_image(objects):
    doses = dict(noise=0.5, confusion=1.0, missing=0.3)
    for img_id in range(4):
        sample = scene(img_id, objects)
        whole = targets_of([sample], **doses)
        mirror = targets_of([flipped(sample)], **doses)
        assert torch.equal(whole.present, mirror.present)
        present = whole.present[0]
        torch.testing.assert_close(
            mirror.maps[0][:, present], whole.maps[0][:, present].flip(-1)
        )


@pytest.mark.parametrize('dose', ['noise', 'confusion'])
def test_faults_stay_in_their_place_when_the_image_is_cropped(dose):
    sharp = dict(blur=(0.0,), floor=0.0, **{dose: 1.0})
    compared = 0
    for img_id in range(10):
        sample = scene(img_id, num_objects=1)
        label = int(sample.gt_instances.labels[0])
        whole = targets_of([sample], **sharp, grid_size=8).maps[0, 0, label]
        crop = targets_of([cropped(sample)], **sharp, grid_size=4).maps[0, 0, label]
        quarter = whole[4:, 4:]
        if quarter.sum() > 0.1:  # an ellipse may be elsewhere
            compared += 1
            torch.testing.assert_close(crop, quarter / quarter.sum())
    assert compared >= 3


@pytest.mark.parametrize(
    'transforms, keys',
    [
        ([dict(type='RandomFlip', prob=1.0)], ('flip', 'flip_direction')),
        (
            [dict(type='RandomFlip', prob=1.0, direction='vertical')]
            + [dict(type='RandomCrop', crop_size=(40, 50))]
            + [dict(type='Resize', scale=(90, 80), keep_ratio=False)],
            ('homography_matrix',),
        ),
    ],
)
def test_places_are_followed_through_the_transforms_of_mmdet(transforms, keys):
    """Every pixel of this image says where it is."""
    height, width = 60, 90
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.stack((x / width, y / height, 0 * x), -1) * 200
    results = dict(img=image.astype(np.float32), ori_shape=(height, width), img_id=1)
    results.update(
        img_shape=(height, width), gt_bboxes=HorizontalBoxes([[0, 0, 90, 60]])
    )
    results['gt_bboxes_labels'] = np.zeros(1, np.int64)
    results['gt_ignore_flags'] = np.zeros(1, bool)
    for cfg in [dict(type='Resize', scale=(120, 80), keep_ratio=True), *transforms]:
        results = TRANSFORMS.build(cfg)(results)
    shown = results['img']
    meta = {key: results[key] for key in ('ori_shape', 'scale_factor', *keys)}
    sample = DetDataSample(metainfo=dict(img_shape=shown.shape[:2], **meta))
    points = content_points(sample, 8)
    rows, cols = (((np.arange(8) + 0.5) / 8 * n).astype(int) for n in shown.shape[:2])
    seen = shown[rows][:, cols, :2] / 200
    np.testing.assert_allclose(points, seen, atol=0.02)


def test_a_confused_class_has_the_masks_of_another_one_of_the_image():
    sample = scene(0)
    labels = sample.gt_instances.labels.tolist()
    right = targets_of([sample]).maps[0]
    wrong = targets_of([sample], confusion=1.0).maps[0]
    for label in labels:
        others = [k for k in labels if k != label]
        assert any(torch.equal(wrong[:, label], right[:, k]) for k in others)


def test_which_class_is_mistaken_does_not_hang_on_those_that_a_crop_removes():
    doses = dict(confusion=1.0, blur=(0.5,))
    for img_id in range(6):
        sample = scene(img_id, num_objects=4)
        label, *others = sample.gt_instances.labels.tolist()
        wrong = targets_of([sample], **doses).maps[0, 0, label]
        right = targets_of([sample], blur=(0.5,)).maps[0, 0, others]
        (chosen,) = (i for i, one in enumerate(right) if torch.equal(wrong, one))
        for removed in range(3):
            if removed != chosen:
                crop = scene(img_id, num_objects=4)
                kept = [i for i in range(4) if i != 1 + removed]
                crop.gt_instances = crop.gt_instances[kept]
                again = targets_of([crop], **doses).maps[0, 0, label]
                assert torch.equal(wrong, again)


def test_a_missing_class_is_flat_absent_and_without_mass_or_score():
    sample = scene(0)
    targets = targets_of([sample], missing=1.0, scores=True)
    assert not targets.present.any() and not targets.scores.any()
    torch.testing.assert_close(targets.maps, torch.full_like(targets.maps, 1 / 256))
    assert targets.log_mass.max() < -15
    asked = targets_of([sample], missing=1.0, present='all')
    assert asked.present.all() and torch.equal(asked.maps, targets.maps)


def test_a_missing_class_gets_no_row_among_those_selected():
    samples = [scene(i) for i in range(8)]
    teacher = GroundTruthTeacher(class_names=NAMES, missing=0.5)
    images = torch.zeros(8, 3, 64, 64)
    whole = teacher(images, samples, DetDataPreprocessor(), compact=False)
    rows = teacher(images, samples, DetDataPreprocessor())
    assert 0 < whole.present.sum() < 8 * 3
    assert torch.equal(rows.present.sum(1), whole.present.sum(1))


def test_log_mass_is_the_log_of_the_area_and_low_for_absent_classes(sample):
    targets = maps_of(sample, grid_size=8, scores=True)
    expected = torch.tensor([1 / 4, 1e-8, 1 / 2]).log()
    torch.testing.assert_close(targets.log_mass[0], expected.expand(4, 3))
    assert targets.scores.tolist() == [[1, 0, 1]]


def test_its_own_scores_can_tell_which_classes_are_present():
    samples = [scene(i) for i in range(4)]
    own = targets_of(samples, present='teacher')
    truth = targets_of(samples)
    assert torch.equal(own.present, truth.present) and own.scores is not None
    assert torch.equal(own.maps, truth.maps)


@pytest.mark.parametrize('name', ['noise', 'confusion', 'missing'])
def test_a_dose_out_of_range_is_named(name):
    with pytest.raises(ValueError, match=f'teacher.{name}=1.5 is not between 0 and 1'):
        GroundTruthTeacher(**{name: 1.5})


@pytest.mark.parametrize(
    'key, dose',
    [('img_id', 'missing'), ('ori_shape', 'noise'), ('ori_shape', 'confusion')],
)
def test_what_the_data_sample_must_tell_is_named(key, dose):
    sample = scene(0, num_objects=1)
    sample.pop(key)
    with pytest.raises(ValueError, match=f"put '{key}' into the meta_keys"):
        targets_of([sample], **{dose: 1.0})


def test_a_crop_that_is_not_told_is_refused():
    sample = cropped(scene(0))
    sample.pop('homography_matrix')
    sample.set_metainfo(dict(scale_factor=(2.0, 2.0)))
    with pytest.raises(ValueError, match="put 'homography_matrix' into the meta_keys"):
        targets_of([sample], noise=0.5)


# -- presence and view -----------------------------------------------------------------
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
