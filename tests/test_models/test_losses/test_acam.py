"""ACAM-KD: which differences its masks weigh, and what they cannot get away with."""

import math

import pytest
import torch

from lfi_mmdet.models.losses.dense import ACAMLoss, DensePair
from lfi_mmdet.models.losses.dense.acam import diversity
from lfi_mmdet.models.losses.dense.base import places
from tests.test_models.test_losses.test_dense_losses import (
    built,
    made,
    random_pair,
    row,
)


def test_what_the_teacher_asks_for_is_answered_by_the_student_off_the_padding():
    loss = made(ACAMLoss())
    loss.query.weight.data.zero_()  # attention is uniform
    loss.value.weight.data.fill_(1)
    student = torch.tensor([[[1.0], [3.0], [99.0]]], dtype=torch.float64)
    valid = torch.tensor([[True, True, False]])
    assert loss.fuse(student, student, valid).flatten().tolist() == [2, 2, 2]


def test_differences_are_averaged_with_the_masks_as_weights():
    loss = made(ACAMLoss(num_masks=2, whiten=False), 2, 2)
    fused = torch.zeros(1, 3, 2, dtype=torch.float64)
    fused[0, :2, 1] = torch.tensor([0.0, 2 * math.log(3)])  # mean over places: log 3
    loss.fuse = lambda *args: fused
    # in both directions, one mask of (1/2, 1/2) and one of (1/2, 3/4)
    loss.channel_units.data[:, 0] = torch.tensor([0.0, 1.0])
    loss.spatial_units.data[:] = torch.tensor([[0.0, 0.0], [0.0, 0.5]])
    pair = row([[1.0, 3.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]])
    # squares are 5 and 10 on average in the channels, 2.5 and 12.5 at the places
    per_channel = ((5 + 10) / 2 + (2 * 5 + 3 * 10) / 5) / 2
    per_place = ((2.5 + 12.5) / 2 + (2 * 2.5 + 3 * 12.5) / 5) / 2
    overlap = 2 * (0.25 + 0.375) / (0.25 + 0.25 + 0.25 + 0.5625)
    expected = per_channel + per_place + 2 * overlap
    assert expected == pytest.approx(17.654762, abs=1e-6)
    assert loss(pair).item() == pytest.approx(expected)


def test_equal_masks_overlap_most_and_disjoint_ones_not_at_all():
    assert diversity(torch.ones(1, 3, 4)).item() == pytest.approx(2)
    assert diversity(torch.eye(3)[None]).item() == 0


def test_masks_that_are_alike_stay_so_however_small_they_are():
    for size in (1.0, 1e-3, 1e-6):
        masks = size * torch.ones(1, 3, 4)
        assert diversity(masks).item() == pytest.approx(2, rel=1e-4), size


@pytest.mark.parametrize('size', [0.0, -10.0, -1000.0])
def test_smaller_masks_make_no_smaller_loss(size):
    """With all logits the same, every mask is constant: the mean square it is."""
    loss = made(ACAMLoss(num_masks=2, whiten=False, diversity_weight=0.0), 2, 2)
    loss.fuse = lambda *args: torch.ones(1, 3, 2, dtype=torch.float64)
    loss.channel_units.data.fill_(size)
    loss.spatial_units.data.fill_(size / 2)
    pair = row([[1.0, 3.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]])
    assert loss(pair).item() == pytest.approx(2 * 30 / 4)


@pytest.mark.parametrize('diversity_weight', [0.0, 1.0])
def test_gradient_descent_does_not_switch_the_masks_off(diversity_weight):
    """The student learns nothing here, so that the masks are all that can move."""
    loss, pair = (
        built(lambda: ACAMLoss(diversity_weight=diversity_weight)),
        random_pair(),
    )
    student, teacher = places(loss.align(pair.student).detach()), places(pair.teacher)
    valid = pair.valid.flatten(1)

    def sizes():
        logits = loss.mask_logits(loss.fuse(student, teacher, valid), valid)
        return [mask.sigmoid().mean().item() for mask in logits]

    before = sizes()
    masks = [p for n, p in loss.named_parameters() if not n.startswith('align')]
    optimizer = torch.optim.Adam(masks, lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss(pair).backward()
        optimizer.step()
    for name, was, size in zip(('channels', 'places'), before, sizes()):
        assert size > 0.7 * was, name


def test_the_differences_have_nothing_to_learn_from_an_equal():
    pair = random_pair()
    loss = made(ACAMLoss(diversity_weight=0.0, whiten=False), 6, 6).float()
    same = DensePair(pair.teacher, pair.teacher, pair.valid)
    assert loss(same).item() == 0
