"""Good layers are told from bad ones, by numbers that a pencil gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from lfi_mmdet.evaluation.map_scores import ImageMasks, presence_auc, score_maps
from lfi_mmdet.evaluation.teacher_quality import (
    METRICS,
    TeacherQuality,
    interval,
    specific_pointing,
    specificity,
)
from lfi_mmdet.models.teachers import FrozenTeacher, GroundTruthTeacher
from lfi_mmdet.structures import InteractionTargets

SIDE = 8
CLASSES = ('a', 'b', 'c')


def mask(rows: slice, cols: slice) -> np.ndarray:
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[rows, cols] = 1
    return values


def instances(masks, labels) -> InstanceData:
    array = np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), np.uint8)
    return InstanceData(
        labels=torch.tensor(labels, dtype=torch.long),
        masks=BitmapMasks(array, SIDE, SIDE),
    )


def make_sample(masks, labels, crowds=(), crowd_labels=()) -> DetDataSample:
    sample = DetDataSample(metainfo=dict(img_shape=(SIDE, SIDE)))
    sample.gt_instances = instances(masks, labels)
    sample.ignored_instances = instances(list(crowds), list(crowd_labels))
    return sample


#: Class 0: the left quarter; class 2: the lower half of the right half
LEFT, RIGHT = mask(slice(None), slice(0, 2)), mask(slice(4, 8), slice(4, 8))


def peak(row: int, col: int, share: float = 1.0) -> torch.Tensor:
    """A map on a 4 x 4 grid, cells of 2 x 2 pixels: a peak and the rest spread."""
    values = torch.full((4, 4), (1 - share) / 15)
    values[row, col] = share
    return values


def targets_of(maps, log_mass=None, scores=None, present=None) -> InteractionTargets:
    """Targets of one image from maps (L, T, 4, 4)."""
    if present is None:
        present = torch.ones(1, maps.shape[1], dtype=torch.bool)
    return InteractionTargets(
        maps=maps[None], present=present, log_mass=log_mass, scores=scores
    )


def judge(batches, layers=1, resamples=0):
    quality = TeacherQuality('attention', [str(i) for i in range(layers)], 3)
    for targets, samples in batches:
        quality.add(targets, samples)
    return quality.result(resamples)


# -- one image -------------------------------------------------------------------------
def test_the_peak_counts_where_its_centre_is_and_the_mass_where_its_area_is():
    named = torch.from_numpy(LEFT).bool()[None]
    others = torch.from_numpy(RIGHT).bool()[None]
    maps = torch.stack([peak(1, 0, 0.7), peak(3, 3, 0.7)])[:, None]
    scores = score_maps(maps, named, others)
    assert scores.hit.tolist() == [[1], [0]]
    assert scores.hit_any.tolist() == [[1], [1]]
    assert scores.hit_chance.tolist() == [4 / 16]
    assert scores.any_chance.tolist() == [8 / 16]
    rest = 0.3 / 15
    expected = torch.tensor([[0.7 + 3 * rest], [4 * rest]]).double()
    torch.testing.assert_close(scores.inside, expected)
    expected = torch.tensor([[4 * rest], [0.7 + 3 * rest]]).double()
    torch.testing.assert_close(scores.others, expected)
    assert scores.area.tolist() == scores.others_area.tolist() == [1 / 4]


def test_a_cell_that_is_covered_in_part_counts_by_its_part():
    strip = mask(slice(0, 8), slice(0, 1))  # half of the first column of cells
    named = torch.from_numpy(strip).bool()[None]
    scores = score_maps(peak(0, 0)[None, None], named, torch.zeros_like(named))
    assert scores.inside.item() == 0.5 and scores.area.item() == 1 / 8
    assert scores.hit.item() == 0, 'its centre, pixel 1, is beside the object'


def test_grids_need_not_divide_the_image():
    sample = make_sample([LEFT], [0])
    named, others = ImageMasks.of(sample).select([0])
    scores = score_maps(torch.full((1, 1, 3, 5), 1 / 15), named, others)
    # centres of 5 columns: pixels 0, 2, 4, 5, 7; of which one is on the object
    assert scores.hit_chance.item() == pytest.approx(1 / 5)
    assert scores.hit.item() == pytest.approx(1 / 5)


def test_a_uniform_map_scores_chance_in_everything():
    """Not what happens to lie in the cell that argmax finds first."""
    samples = [make_sample([LEFT, RIGHT], [0, 2]), make_sample([RIGHT], [1])]
    flat = targets_of(
        torch.full((1, 3, 4, 4), 1 / 16),
        log_mass=torch.zeros(1, 1, 3),
        scores=torch.zeros(1, 3),
    )
    (layer,) = judge([(flat, [sample]) for sample in samples])
    for name in METRICS:
        estimate = getattr(layer, name)
        assert estimate.value == pytest.approx(estimate.chance, abs=1e-6), name
    assert layer.pointing.chance == pytest.approx(1 / 4)
    assert layer.specificity.chance == pytest.approx(1 / 2)


def test_a_map_that_is_blind_to_the_class_has_no_specific_pointing():
    """Class 0 has half of the objects' area, so a blind map is right half the time."""
    blind = targets_of(peak(1, 0).expand(1, 3, 4, 4))
    (layer,) = judge([(blind, [make_sample([LEFT, RIGHT], [0, 2])])])
    assert layer.pointing.value == 0.5 > layer.pointing.chance
    assert layer.specific_pointing.value == pytest.approx(0)


@pytest.mark.parametrize('right, expected', [(True, 1.0), (False, -1.0)])
def test_specific_pointing_runs_from_the_wrong_class_to_the_right_one(right, expected):
    maps = torch.stack([peak(0, 0), peak(0, 0), peak(3, 3)])
    maps = maps if right else maps.flip(0)
    result = judge([(targets_of(maps[None]), [make_sample([LEFT, RIGHT], [0, 2])])])
    assert result[0].specific_pointing.value == pytest.approx(expected)


def test_specific_pointing_and_specificity_by_hand():
    """Class 0 covers 4 cells and class 2 one; 7 of 10 parts of the map are on 0."""
    small = mask(slice(6, 8), slice(6, 8))
    named, others = ImageMasks.of(make_sample([LEFT, small], [0, 2])).select([0, 2])
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, :, 0, 0], maps[0, :, 3, 3] = 0.7, 0.2
    maps[0, :, 0, 3] = 0.1  # on no object
    scores = score_maps(maps, named, others)
    excess, room = specific_pointing(scores)
    # class 0: hit, a blind map would be right in 4 of 5; class 2: no hit, 1 in 5
    torch.testing.assert_close(excess, torch.tensor([[1 / 5, -1 / 5]]).double())
    torch.testing.assert_close(room, torch.tensor([1 / 5, 4 / 5]).double())
    share, chance, counts = specificity(scores)
    torch.testing.assert_close(share, torch.tensor([[7 / 9, 2 / 9]]).double())
    torch.testing.assert_close(chance, torch.tensor([4 / 5, 1 / 5]).double())
    assert counts.tolist() == [1, 1]


def test_where_classes_overlap_the_named_one_has_the_pixels():
    whole = np.ones((SIDE, SIDE), np.uint8)
    named, others = ImageMasks.of(make_sample([LEFT, whole], [0, 2])).select([0, 2])
    assert named[0].sum() + others[0].sum() == SIDE * SIDE
    assert not (named & others).any() and not others[1].any()


def test_instances_and_crowds_of_a_class_count_together():
    sample = make_sample([RIGHT], [1], crowds=[LEFT], crowd_labels=[1])
    objects = ImageMasks.of(sample)
    assert objects.labels == [1]
    assert objects.masks[0].numpy().tolist() == ((LEFT + RIGHT) > 0).tolist()


def test_the_ranking_of_classes_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    present = torch.tensor([True, True, False, False])
    # pairs of the first row: 3>2, 3>1, 1<2, 1=1; of the second: all four lost
    assert presence_auc(scores, present).tolist() == [2.5 / 4, 0.0]
    assert presence_auc(scores, torch.ones(4, dtype=torch.bool)) is None
    assert presence_auc(scores, torch.zeros(4, dtype=torch.bool)) is None


# -- a dataset -------------------------------------------------------------------------
def test_means_are_over_rows_and_multi_means_over_images_of_two_classes():
    two = make_sample([LEFT, RIGHT], [0, 2])
    one = make_sample([LEFT], [0])
    maps = torch.stack([peak(0, 0), peak(0, 0), peak(0, 0)])[None]
    (layer,) = judge([(targets_of(maps), [two]), (targets_of(maps), [one])])
    assert layer.pointing.value == pytest.approx(2 / 3)
    assert (layer.pointing.num_images, layer.pointing.num_rows) == (2, 3)
    assert layer.pointing_multi.value == 1 / 2
    assert (layer.pointing_multi.num_images, layer.pointing_multi.num_rows) == (1, 2)
    assert layer.inside_named.value == pytest.approx(2 / 3)
    assert layer.inside_others.value == 1 / 2
    assert layer.presence_auc is layer.score_auc is None
    assert layer.most == 1


def test_objects_between_the_centres_of_cells_limit_pointing():
    """A thin strip covers no centre; whoever misses it is not to blame."""
    strip = mask(slice(0, 8), slice(0, 1))
    samples = [make_sample([strip], [0]), make_sample([LEFT], [0])]
    maps = peak(0, 0).expand(1, 3, 4, 4)
    (layer,) = judge([(targets_of(maps), [sample]) for sample in samples])
    assert layer.most == layer.pointing.value == 0.5


def test_the_ranking_is_within_images_and_averaged_over_them():
    samples = [make_sample([LEFT], [0]), make_sample([LEFT, RIGHT], [0, 2])]
    maps = peak(0, 0).expand(2, 3, 4, 4)
    # other images have other levels: across images these would not rank so well
    first = torch.tensor([[[5.0, 1, 6], [5, 1, 2]]])
    second = torch.tensor([[[-9.0, -8, -7], [-9, -8, -7]]])
    scores = torch.tensor([[0.3, 0.2, 0.1]])
    layers = judge(
        [
            (targets_of(maps, first, scores), samples[:1]),
            (targets_of(maps, second, scores), samples[1:]),
        ],
        layers=2,
    )
    # first image: one of two pairs, then both; second: 2 beats 1, 0 does not
    assert layers[0].presence_auc.value == pytest.approx((0.5 + 0.5) / 2)
    assert layers[1].presence_auc.value == pytest.approx((1.0 + 0.5) / 2)
    assert layers[0].score_auc.value == layers[1].score_auc.value == 0.75
    assert layers[0].presence_auc.num_images == 2


def test_texts_that_were_not_asked_for_and_free_words_are_not_judged():
    present = torch.tensor([[True, True, False, True]])
    maps = peak(0, 0).expand(1, 4, 4, 4)
    log_mass = torch.tensor([[[2.0, 1.0, 9.0, 9.0]]])
    targets = targets_of(maps, log_mass, present=present)
    (layer,) = judge([(targets, [make_sample([LEFT, RIGHT], [0, 2])])])
    assert layer.pointing.num_rows == 1 and layer.pointing.value == 1
    assert layer.presence_auc.value == 1, 'class 2 and the word in row 3 are left out'


def test_images_without_objects_are_counted_and_change_nothing():
    maps = peak(0, 0).expand(1, 3, 4, 4)
    quality = TeacherQuality('attention', ['0'], 3)
    quality.add(targets_of(maps, torch.zeros(1, 1, 3)), [make_sample([], [])])
    assert all(getattr(quality.result()[0], name) is None for name in METRICS)
    quality.add(targets_of(maps), [make_sample([LEFT], [0])])
    assert quality.num_images == 2
    assert quality.result()[0].pointing.num_images == 1


def test_targets_that_do_not_fit_are_refused():
    quality = TeacherQuality('attention', ['0', '1'], 3)
    maps = peak(0, 0).expand(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"1 layers, but the teacher names 2: \['0'"):
        quality.add(targets_of(maps), [make_sample([], [])])
    few = targets_of(peak(0, 0).expand(2, 3, 4, 4))
    few = few.select(few.present)
    with pytest.raises(ValueError, match='compact=False'):
        quality.add(few, [make_sample([], [])])


def test_objects_without_masks_are_named():
    sample = make_sample([LEFT], [0])
    del sample.gt_instances.masks
    with pytest.raises(ValueError, match='objects without masks.*with_mask=True'):
        ImageMasks.of(sample)


def test_the_interval_is_that_of_the_mean_over_images():
    random = np.random.default_rng(1)
    values = random.normal(3, 2, 400)
    low, high, error = interval(values, np.ones(400))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert error == pytest.approx(2 / 20, rel=0.15)
    assert interval(values, np.ones(400)) == (low, high, error)
    assert interval(values[:1], np.ones(1)) == (None, None, None)


def test_rows_of_an_image_are_drawn_together():
    """A hundred images of ten like rows tell no more than a hundred rows."""
    hits = np.random.default_rng(1).integers(0, 2, 100).astype(float)
    alone = interval(hits, np.ones(100))
    together = interval(10 * hits, np.full(100, 10.0))
    assert together == pytest.approx(alone)


# -- teachers with layers that are known to be good or bad -----------------------------
class LayeredTeacher(FrozenTeacher):
    """Layer 0 is random, 1 finds objects of any class, 2 those of the named one."""

    def __init__(self):
        super().__init__(view=dict(size=4), present='all')
        self.set_class_names(CLASSES)

    num_layers = 3

    def encode_texts(self, class_names):
        pass

    def interact(self, images, present):
        raise NotImplementedError

    def targets(self, batch_inputs, data_samples, present, preprocessor):
        random = torch.Generator().manual_seed(len(data_samples))
        maps = torch.rand(len(data_samples), 3, 3, 8, 8, generator=random)
        for image, sample in zip(maps, data_samples):
            masks = torch.from_numpy(sample.gt_instances.masks.to_ndarray())
            image[1] += masks.amax(0)
            for label, own in zip(sample.gt_instances.labels.tolist(), masks):
                image[2, label] += own
        total = maps.sum((-2, -1), keepdim=True)
        return InteractionTargets(
            maps=maps / total, present=present, log_mass=total[..., 0, 0].log()
        )


def scenes(count: int) -> list[DetDataSample]:
    """Images of two classes: one quarter each, all else is background."""
    random = np.random.default_rng(0)
    quarters = [(slice(r, r + 4), slice(c, c + 4)) for r in (0, 4) for c in (0, 4)]
    samples = []
    for _ in range(count):
        first, second = random.permutation(4)[:2]
        labels = random.permutation(3)[:2].tolist()
        sample = make_sample([mask(*quarters[first]), mask(*quarters[second])], labels)
        sample.set_metainfo(dict(img_id=len(samples), ori_shape=(SIDE, SIDE)))
        samples.append(sample)
    return samples


def ask(teacher, samples, reading='attention') -> list:
    quality = TeacherQuality(reading, teacher.layer_names, len(CLASSES))
    for i in range(0, len(samples), 50):
        batch = samples[i : i + 50]
        images = torch.zeros(len(batch), 3, SIDE, SIDE)
        targets = teacher(images, batch, DetDataPreprocessor(), compact=False)
        quality.add(targets, batch)
    return quality.result()


@pytest.fixture(scope='module')
def layers():
    return ask(LayeredTeacher(), scenes(200))


def test_a_random_layer_is_at_chance_in_everything(layers):
    for name in METRICS[:-2]:
        estimate = getattr(layers[0], name)
        assert not estimate.beats_chance(), name
        assert estimate.value == pytest.approx(estimate.chance, abs=0.05), name


def test_a_layer_that_finds_any_object_points_well_but_not_specifically(layers):
    assert layers[1].pointing.beats_chance(among=100)
    assert layers[1].pointing.value == pytest.approx(0.5, abs=0.07)
    assert layers[1].inside_named.beats_chance()
    for name in ('specific_pointing', 'specificity'):
        assert not getattr(layers[1], name).beats_chance()
    assert layers[1].presence_auc.value == pytest.approx(0.5, abs=0.07)


def test_a_layer_that_finds_the_class_is_good_in_everything(layers):
    assert layers[2].pointing.value == layers[2].specific_pointing.value == 1
    for name in METRICS[:-1]:
        if name != 'inside_others':
            assert getattr(layers[2], name).beats_chance(among=100), name
    assert layers[2].inside_others.value < layers[2].inside_others.chance
    assert layers[2].presence_auc.value == pytest.approx(1, abs=0.01)


def test_luck_must_be_greater_the_more_layers_there_are(layers):
    one = layers[1].pointing
    lucky = replace(one, value=one.chance + 2.5 * one.error)
    assert lucky.beats_chance(among=1) and not lucky.beats_chance(among=100)


@pytest.mark.parametrize('fault', ['noise', 'confusion', 'missing'])
def test_every_fault_of_the_diagnosis_teacher_shows(fault):
    samples = scenes(60)
    values = []
    for dose in (0.0, 0.5, 1.0):
        teacher = GroundTruthTeacher(
            grid_size=8,
            blur=(0.5,),
            class_names=CLASSES,
            present='all',
            **{fault: dose},
        )
        (layer,) = ask(teacher, samples)
        values.append(layer.specific_pointing.value)
    assert values[0] > 0.95 and values[0] > values[1] > values[2], values
