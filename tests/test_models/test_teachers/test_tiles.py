"""What a teacher saw in the tiles of an image, put together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch._subclasses.fake_tensor import FakeTensorMode

from lfi_mmdet.models.teachers import CLIPTeacher
from lfi_mmdet.models.teachers.base import FrozenTeacher
from lfi_mmdet.models.teachers.tiles import stitch_maps, stitch_targets
from lfi_mmdet.models.teachers.view import TeacherView
from lfi_mmdet.structures import InteractionTargets

from .tiny_open_clip import CLASSES

LAYERS, TEXTS, PATCH = 2, 3, 4
#: Sides of a tile, and of the canvas, in pixels
SIZE = (16, 24)
TILES = [
    ((1, 1), 0), ((2, 2), 0), ((2, 2), 4), ((2, 3), 8), ((3, 1), 4), ((1, 2), 4),
    ((4, 3), 12),
]  # fmt: skip
BIG = torch.finfo(torch.float32).max


class PatchwiseTeacher(FrozenTeacher):
    """Each patch knows its own pixels only, so that tiles lose nothing."""

    def __init__(self, size, **common):
        super().__init__(view=dict(size=size), present='all', **common)
        generator = torch.Generator().manual_seed(0)
        shape = (LAYERS * TEXTS, 3, PATCH, PATCH)
        self.kernel = torch.randn(shape, generator=generator) / 4
        self.values = torch.randn((5, 3, PATCH, PATCH), generator=generator)
        self.set_class_names(['a', 'b', 'c'])

    num_layers = LAYERS

    def encode_texts(self, class_names):
        pass

    def interact(self, images, present):
        logits = F.conv2d(images, self.kernel, stride=PATCH)
        values = F.conv2d(images, self.values, stride=PATCH)
        logits = logits.unflatten(1, (LAYERS, TEXTS))
        maps = logits.flatten(-2).softmax(-1)
        return InteractionTargets(
            maps=maps.view_as(logits),
            present=present,
            features=torch.einsum('bltn,bcn->bltc', maps, values.flatten(2)),
            log_mass=logits.flatten(-2).logsumexp(-1),
        )


@pytest.fixture
def photos():
    """A batch with padding, as a student sees it, for ``FrozenTeacher.__call__``."""
    samples = [
        DetDataSample(metainfo=dict(img_shape=shape)) for shape in [(40, 64), (48, 50)]
    ]
    return 128 + 60 * torch.randn(2, 3, 48, 64), samples, DetDataPreprocessor()


def random_targets(view, grid=(2, 3), **changes):
    count = 2 * view.num_tiles
    maps = torch.rand(count, LAYERS, TEXTS, *grid)
    held = dict(
        maps=maps / maps.sum((-2, -1), keepdim=True),
        present=torch.ones(count, TEXTS, dtype=torch.bool),
        log_mass=torch.randn(count, LAYERS, TEXTS),
    )
    return InteractionTargets(**{**held, **changes})


@pytest.mark.parametrize('tiles, overlap', TILES)
def test_tiles_equal_the_whole_where_patches_know_nothing_else(photos, tiles, overlap):
    tiled = PatchwiseTeacher(SIZE, teacher_view='tiles', tiles=tiles, overlap=overlap)
    found = tiled(*photos)
    expected = PatchwiseTeacher(tiled.view.canvas)(*photos)
    assert found.maps.shape == expected.maps.shape
    torch.testing.assert_close(found.maps, expected.maps, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.log_mass, expected.log_mass, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.present, expected.present)
    if not overlap:
        torch.testing.assert_close(
            found.features, expected.features, atol=1e-5, rtol=1e-5
        )


def test_features_are_those_of_the_whole_but_for_the_overlap(photos):
    tiled = PatchwiseTeacher(SIZE, teacher_view='tiles', overlap=4)
    expected = PatchwiseTeacher(tiled.view.canvas)(*photos).features
    found = tiled(*photos).features
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.3


def test_one_tile_changes_nothing(photos):
    one = PatchwiseTeacher(SIZE, teacher_view='tiles', tiles=(1, 1))(*photos)
    resized = PatchwiseTeacher(SIZE)(*photos)
    for name in ('maps', 'features', 'log_mass', 'present'):
        assert torch.equal(getattr(one, name), getattr(resized, name))


def test_where_tiles_overlap_their_weights_fall_towards_the_border():
    maps = torch.full((2, 1, 1, 1, 4), 1 / 4)
    log_mass = torch.tensor([4.0, 0.0]).log().view(2, 1, 1)
    stitched, mass = stitch_maps(maps, log_mass, (1, 2), (0, 2))
    expected = torch.tensor([1, 1, 2 / 3, 1 / 3, 0, 0])
    torch.testing.assert_close(stitched.flatten(), expected / 3)
    torch.testing.assert_close(mass.exp().flatten(), torch.tensor([3.0]))


def test_three_tiles_over_one_patch_still_average():
    maps = torch.full((4, 1, 1, 4, 1), 1 / 4)
    log_mass = torch.full((4, 1, 1), 4.0).log()
    stitched, mass = stitch_maps(maps, log_mass, (4, 1), (3, 0))
    torch.testing.assert_close(stitched, torch.full((1, 1, 1, 7, 1), 1 / 7))
    torch.testing.assert_close(mass.exp().flatten(), torch.tensor([7.0]))


def test_tiles_without_log_mass_count_alike():
    maps = random_targets(TeacherView(8, teacher_view='tiles')).maps
    stitched, mass = stitch_maps(maps, None, (2, 2), (0, 0))
    assert mass is None
    quarters = stitched.unfold(3, 2, 2).unfold(4, 3, 3).sum((-2, -1))
    torch.testing.assert_close(quarters, torch.full_like(quarters, 1 / 4))
    torch.testing.assert_close(stitched[0, :, :, :2, 3:], maps[1] / 4)


@pytest.mark.parametrize('least', [-BIG, float('-inf'), -1e4, 1e4])
def test_masses_far_from_1_stay_finite(least):
    maps = random_targets(TeacherView(8, teacher_view='tiles')).maps
    log_mass = torch.full((8, LAYERS, TEXTS), least)
    stitched, mass = stitch_maps(maps, log_mass, (2, 2), (1, 1))
    assert stitched.isfinite().all() and mass.isfinite().all()
    sums = stitched.sum((-2, -1))
    torch.testing.assert_close(sums, torch.ones_like(sums))
    log_mass[0] = log_mass[0].clamp(min=-1e4) + 100
    stitched, _ = stitch_maps(maps, log_mass, (2, 2), (0, 0))
    torch.testing.assert_close(stitched[0, ..., :2, :3], maps[0])


def test_a_text_is_present_and_scored_as_in_its_best_tile():
    view = TeacherView(8, teacher_view='tiles', tiles=(1, 2))
    present = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.1] * 3, [0.2] * 3])
    found = stitch_targets(random_targets(view, present=present, scores=scores), view)
    assert found.present.tolist() == [[True, True, False], [False, False, True]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.8, 0.2], [0.2] * 3]))


def test_relations_are_those_of_the_stitched_features():
    view = TeacherView(8, teacher_view='tiles')
    features = torch.randn(8, LAYERS, TEXTS, 5)
    targets = random_targets(
        view, features=features, relations=torch.zeros(8, LAYERS, TEXTS, TEXTS)
    )
    found = stitch_targets(targets, view)
    expected = F.cosine_similarity(
        found.features[..., None, :], found.features[..., None, :, :], dim=-1
    )
    torch.testing.assert_close(found.relations, expected)


def test_relations_without_features_count_where_both_texts_are():
    view = TeacherView(8, teacher_view='tiles', tiles=(1, 2))
    relations = torch.eye(TEXTS).repeat(4, LAYERS, 1, 1)
    relations[0, :, 0, 1] = relations[0, :, 1, 0] = 0.9
    relations[1, :, 0, 1] = relations[1, :, 1, 0] = -0.3
    log_mass = torch.zeros(4, LAYERS, TEXTS)
    log_mass[1, :, :2] = -20  # neither is in the second tile
    targets = random_targets(view, relations=relations, log_mass=log_mass)
    found = stitch_targets(targets, view).relations
    assert found.shape == (2, LAYERS, TEXTS, TEXTS)
    torch.testing.assert_close(found[0, :, 0, 1], torch.full((LAYERS,), 0.9))
    torch.testing.assert_close(found[1], relations[2])
    ones = torch.ones(2, LAYERS, TEXTS)
    torch.testing.assert_close(found.diagonal(dim1=-2, dim2=-1), ones)


def test_nothing_waits_for_the_device():
    view = TeacherView(8, teacher_view='tiles', overlap=4)
    with FakeTensorMode():
        targets = random_targets(view, grid=(2, 2), scores=torch.rand(8, TEXTS))
        targets.features = torch.rand(8, LAYERS, TEXTS, 5)
        found = stitch_targets(targets, view)
        assert found.maps.shape == (2, LAYERS, TEXTS, 3, 3)


def test_an_overlap_within_a_patch_is_refused():
    view = TeacherView((8, 9), teacher_view='tiles', overlap=2)
    with pytest.raises(ValueError, match='overlap=2 .* patches of 4 x 3 pixels'):
        stitch_targets(random_targets(view), view)


def test_a_real_teacher_sees_the_present_classes_in_tiles(saved, photos):
    _, file = saved('tiny-clip')
    options = dict(model='tiny-clip', pretrained=file, class_names=CLASSES)
    teacher = CLIPTeacher(**options, teacher_view='tiles', tiles=(2, 3), overlap=8)
    batch, samples, preprocessor = photos
    for sample, labels in zip(samples, [[2], [0, 1]]):
        sample.gt_instances = InstanceData(labels=torch.tensor(labels))
    found = teacher(batch, samples, preprocessor)
    assert found.maps.shape[2:] == (2, 7, 10)  # 4 x 4 patches of 8 pixels per tile
    assert found.texts[1].tolist() == [0, 1] and found.texts[0, 0] == 2
    assert found.present.tolist() == [[True, False], [True, True]]
    sums = found.maps[found.present[:, None].expand(found.maps.shape[:3])].sum((1, 2))
    torch.testing.assert_close(sums, torch.ones_like(sums))
    with pytest.raises(ValueError, match='overlap=4 .* patches of 8 x 8 pixels'):
        CLIPTeacher(**options, teacher_view='tiles', overlap=4)
