"""Which places student and teacher are compared at."""

import pytest
import torch

from lfi_mmdet.models.distillers import FeatureDistiller
from lfi_mmdet.structures import (
    InteractionSpec,
    InteractionTargets,
    InteractionTrace,
    valid_patches,
)

PATCH, DIMS = 8, 3


def distiller():
    torch.manual_seed(0)
    spec = InteractionSpec(layers=(), num_queries=0, embed_dims=DIMS, feedback=False)
    losses = dict(it=dict(type='FitNetLoss'))
    return FeatureDistiller(spec, dict(tower=DIMS), losses)


def sides(shapes, batch_shape):
    """What a backbone and a teacher return for images of these sizes, in pixels."""
    grid = tuple(-(-side // PATCH) for side in batch_shape)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 1, 5, 5, DIMS, generator=generator)
    output = torch.randn(1, DIMS, 5, 5, generator=generator)[..., : grid[0], : grid[1]]
    padded = any(shape != batch_shape for shape in shapes)
    valid = valid_patches(shapes, grid, (PATCH, PATCH)) if padded else None
    targets = InteractionTargets(
        maps=torch.ones(len(shapes), 1, 0, 5, 5),
        present=torch.zeros(len(shapes), 0, dtype=torch.bool),
        tokens=tokens.expand(len(shapes), -1, -1, -1, -1),
    )
    outputs = (output.expand(len(shapes), -1, -1, -1),)
    return InteractionTrace(grid=grid, valid=valid, outputs=outputs), targets


@pytest.mark.parametrize('shape', [(20, 32), (32, 19), (17, 17), (16, 24)])
def test_a_strip_that_the_teacher_says_nothing_about_is_not_compared(shape):
    """Not padded, but half a patch or more of the last ones is outside the image."""
    trace, targets = sides([shape, shape], shape)
    pair = distiller().align(trace, targets, [shape, shape], (PATCH, PATCH))
    inside = pair.valid[0].sum(0).max(), pair.valid[0].sum(1).max()
    assert [int(n) for n in inside] == [
        sum(PATCH * (i + 0.5) < side for i in range(side)) for side in shape
    ]
    # the teacher's 0 is never compared with what the student has
    assert (pair.teacher.abs().sum(1) > 0).equal(pair.valid)
    assert (pair.student.abs().sum(1) > 0).equal(pair.valid)


def test_an_image_has_the_same_loss_alone_and_beside_a_larger_one():
    """Its strip is masked in both cases, whether or not the batch is padded."""
    small, large = (20, 24), (32, 40)
    module = distiller()

    def loss_of_the_first(*shapes):
        batch_shape = tuple(max(side) for side in zip(*shapes))
        trace, targets = sides(list(shapes), batch_shape)
        pair = module.align(trace, targets, shapes, (PATCH, PATCH))
        for name in ('student', 'teacher', 'valid'):
            setattr(pair, name, getattr(pair, name)[:1])
        return module.losses['it'](pair).item()

    alone = loss_of_the_first(small)
    assert alone > 0
    assert loss_of_the_first(small, large) == pytest.approx(alone)
