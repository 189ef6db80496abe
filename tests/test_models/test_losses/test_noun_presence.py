"""Which nouns an image shows, asked of its patches."""

import math

import pytest
import torch

from lfi_mmdet.models.losses.noun_presence import noun_logits, noun_presence_loss


def test_logits_are_a_soft_maximum_over_patches_as_computed_by_hand():
    cosines = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # one image, 2 patches, 2 nouns
    scale, bias = torch.tensor(2.0), torch.tensor(-1.0)
    logits = noun_logits(cosines, scale, bias)
    by_hand = math.log((math.exp(2) + 1) / 2) - 1
    assert logits[0].tolist() == pytest.approx([by_hand, -1.0])


def test_one_patch_is_enough_at_a_large_scale():
    cosines = torch.zeros(1, 64, 1)
    cosines[0, 5] = 1
    logits = noun_logits(cosines, torch.tensor(100.0), torch.tensor(0.0))
    assert float(logits) == pytest.approx(100 - math.log(64), abs=1e-3)


def test_the_loss_is_the_cross_entropy_of_every_noun_in_every_layer():
    logits = torch.tensor([[[0.0, 1.0], [2.0, -1.0]]])  # one image, 2 layers, 2 nouns
    named = torch.tensor([[True, False]])
    parts = [math.log(2), math.log(1 + math.e), math.log(1 + math.exp(-2))]
    by_hand = (sum(parts) + math.log(1 + math.exp(-1))) / 4
    assert float(noun_presence_loss(logits, named)) == pytest.approx(by_hand)
