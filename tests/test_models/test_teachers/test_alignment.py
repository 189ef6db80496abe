"""Teacher and student look at the same pixels, however they are augmented."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_mmdet.models.distillers import resample_maps
from lfi_mmdet.structures import valid_patches
from tests.alignment import (
    BrightnessTeacher,
    augment,
    batches,
    drift,
    object_of,
    preprocess,
    preprocessings,
)

VIEWS = {
    'resize': dict(),
    'tiles': dict(teacher_view='tiles', tiles=(2, 2)),
    'overlapping tiles': dict(teacher_view='tiles', tiles=(2, 3), overlap=8),
}
#: A patch is promised; half a patch would be a wrong offset
CLOSE = 0.4


@pytest.fixture(params=VIEWS, scope='module')
def teacher(request):
    return BrightnessTeacher(**VIEWS[request.param])


def examples(count):
    # the same examples in every run
    return settings(max_examples=count, deadline=None, derandomize=True)


def on_the_students_grid(targets, inputs, samples, patch):
    """The maps on the student's grid, (B, H, W), what they cover, and the padding."""
    grid = tuple(-(-side // patch) for side in inputs.shape[-2:])
    covered = (grid[0] * patch, grid[1] * patch)
    shapes = [sample.img_shape for sample in samples]
    valid = valid_patches(shapes, grid, (patch, patch))
    maps = resample_maps(targets.maps[:, 0], shapes, covered, grid, valid)
    return maps[:, 0].unflatten(1, grid), covered, valid.unflatten(1, grid)


def patches_of(maps, sample):
    return [side / n for side, n in zip(sample.img_shape, maps.shape[-2:])]


@examples(50)
@given(cases=batches(), preprocessing=preprocessings())
def test_map_and_object_stay_together(teacher, cases, preprocessing):
    batch = preprocess([augment(*case) for case in cases], **preprocessing)
    targets = teacher(*batch)
    assert targets.maps.shape[0] == len(cases)
    for attention, sample in zip(targets.maps[:, 0, 0], batch[1]):
        found = drift(attention, object_of(sample), sample.img_shape)
        assert found.centre <= (CLOSE if teacher.view.num_tiles == 1 else 1), found
        assert found.peak <= 1 and found.outside < 0.05, found


@examples(50)
@given(cases=batches(), preprocessing=preprocessings(), patch=st.sampled_from([8, 16]))
def test_they_stay_together_on_the_students_grid(teacher, cases, preprocessing, patch):
    """Within one patch of the teacher or the student, whichever is larger."""
    batch = preprocess([augment(*case) for case in cases], **preprocessing)
    targets = teacher(*batch)
    maps, covered, valid = on_the_students_grid(targets, *batch[:2], patch)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(len(maps)))
    assert not maps[~valid].any()
    for attention, sample in zip(maps, batch[1]):
        unit = [max(patch, side) for side in patches_of(targets.maps, sample)]
        found = drift(attention, object_of(sample), covered, unit)
        assert found.centre <= 1 and found.peak <= 1 and found.outside < 0.1, found


@examples(20)
@given(cases=batches(), preprocessing=preprocessings())
def test_the_teacher_sees_nothing_of_the_padding(teacher, cases, preprocessing):
    packed = [augment(*case) for case in cases]
    inputs, samples, preprocessor = preprocess(packed, **preprocessing)
    poisoned = torch.full_like(inputs, torch.nan)
    for image, source, sample in zip(poisoned, inputs, samples):
        height, width = sample.img_shape
        image[:, :height, :width] = source[:, :height, :width]
    targets = teacher(inputs, samples, preprocessor)
    assert torch.equal(teacher(poisoned, samples, preprocessor).maps, targets.maps)
