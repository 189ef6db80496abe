"""UniformTeacher tells which texts are present, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from lfi_mmdet.models.distillers import InteractionDistiller
from lfi_mmdet.models.losses.relation import cosines
from lfi_mmdet.models.teachers import CachedTeacher, UniformTeacher
from lfi_mmdet.models.teachers.uniform import without_information
from lfi_mmdet.structures import InteractionSpec, InteractionTargets, InteractionTrace

from .brightness import BrightnessTeacher, ask, image_of

IMAGES = [image_of(30.0, [0]), image_of(120.0, [0, 2])]


@pytest.mark.parametrize('present', ['ground_truth', 'teacher', 'all'])
@pytest.mark.parametrize('compact', [False, True])
def test_texts_and_shapes_are_those_of_the_teacher_inside(present, compact):
    plain = ask(BrightnessTeacher(present=present), *IMAGES, compact=compact)
    inner = dict(type='BrightnessTeacher', present=present)
    targets = ask(UniformTeacher(inner), *IMAGES, compact=compact)
    assert torch.equal(targets.present, plain.present)
    assert (targets.texts is None) == (plain.texts is None)
    if plain.texts is not None:
        assert torch.equal(targets.texts, plain.texts)
    for name in ('maps', 'features', 'log_mass'):
        value, expected = getattr(targets, name), getattr(plain, name)
        assert value.shape == expected.shape and value.dtype == expected.dtype


def test_no_two_images_texts_or_layers_can_be_told_apart():
    targets = ask(UniformTeacher(dict(type='BrightnessTeacher')), *IMAGES)
    assert (targets.maps == 1 / 16).all()
    torch.testing.assert_close(cosines(targets.features), torch.ones(2, 2, 3, 3))
    for value in (targets.features, targets.log_mass):
        assert value.unique().numel() == 1


def test_relations_and_stored_targets_are_emptied_as_well():
    targets = InteractionTargets(
        maps=torch.rand(1, 2, 2, 3, 4),
        present=torch.tensor([[True, False]]),
        relations=torch.rand(1, 2, 2, 2),
    )
    empty = without_information(targets)
    assert (empty.maps == 1 / 12).all() and (empty.relations == 1).all()
    assert empty.features is None and empty.log_mass is None


def test_a_teacher_with_stored_targets_is_asked_as_a_whole(monkeypatch):
    asked = ask(BrightnessTeacher(), *IMAGES)
    monkeypatch.setattr(CachedTeacher, '__init__', lambda self: None)
    monkeypatch.setattr(CachedTeacher, '__call__', lambda *a, **k: asked)
    targets = ask(UniformTeacher(dict(type='CachedTeacher')), *IMAGES)
    assert torch.equal(targets.present, asked.present)
    assert (targets.maps == 1 / 16).all()


def test_the_attention_loss_is_the_divergence_from_the_uniform_distribution():
    spec = InteractionSpec(layers=(1, 3), num_queries=3, embed_dims=4, feedback=True)
    distiller = InteractionDistiller(
        spec,
        teacher_layers=2,
        feature_dims=3,
        losses=dict(
            attention=dict(type='InteractionAttentionLoss'),
            dynamics=dict(type='InteractionDynamicsLoss'),
        ),
    )
    logits = [torch.randn(2, 1, 3, 16) for _ in range(2)]
    trace = InteractionTrace(
        logits=logits, queries=[torch.randn(2, 3, 4) for _ in range(2)], grid=(4, 4)
    )
    teacher = UniformTeacher(dict(type='BrightnessTeacher'))
    targets = ask(teacher, *IMAGES, compact=True)
    losses = distiller(trace, targets, [(16, 16)] * 2, (4, 4))
    by_hand = []
    for layer in logits:
        for image, text in ((0, 0), (1, 0), (1, 2)):
            looked = layer[image, 0, text].softmax(-1)
            # sum of u log(u / a) with u = 1 / 16
            by_hand.append(-math.log(16) - float(looked.log().mean()))
    expected = torch.tensor(sum(by_hand) / len(by_hand))
    torch.testing.assert_close(losses['loss_lfi_attention'], expected)
    still = InteractionTrace(
        logits=[torch.zeros(2, 1, 3, 16)] * 2, queries=trace.queries, grid=(4, 4)
    )
    losses = distiller(still, targets, [(16, 16)] * 2, (4, 4))
    for value in losses.values():  # who looks everywhere alike has learned it all
        torch.testing.assert_close(value, torch.tensor(0.0), atol=1e-6, rtol=0)
