"""The losses on interactions, by hand and by gradcheck."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lfi_mmdet.models.distillers.interaction_distiller import student_log_attention
from lfi_mmdet.models.losses import (
    InteractionAttentionLoss,
    InteractionDynamicsLoss,
    InteractionFeatureLoss,
    InteractionRelationLoss,
    InteractionTextLoss,
)
from lfi_mmdet.models.losses.base import InteractionPair
from lfi_mmdet.structures import InteractionSpec

B, K, N, D, C, HEADS = 2, 3, 5, 4, 6, 2
PRESENT = torch.tensor([[True, True, False], [True, True, True]])


def make_loss(cls, **kwargs):
    loss = cls(**kwargs)
    loss.connect(InteractionSpec((0, 1), K, D, True), C)
    return loss


def make_pairs(layers=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return [
        InteractionPair(
            log_attention=randn(B, K, N).log_softmax(-1),
            target=randn(B, K, N).softmax(-1),
            queries=randn(B, K, D),
            features=randn(B, K, C),
            logits=randn(B, HEADS, K, N),
            log_mass=randn(B, K),
        )
        for _ in range(layers)
    ]


LOSSES = [
    InteractionAttentionLoss,
    InteractionRelationLoss,
    InteractionDynamicsLoss,
    InteractionFeatureLoss,
    InteractionTextLoss,
]


@pytest.mark.parametrize('cls', LOSSES)
def test_gradients_are_right(cls):
    loss = make_loss(cls).double()
    pairs = make_pairs()
    logits = [
        torch.randn(B, HEADS, K, N, dtype=torch.float64, requires_grad=True)
        for _ in pairs
    ]
    queries = [
        torch.randn(B, K, D, dtype=torch.float64, requires_grad=True) for _ in pairs
    ]

    def value(*inputs):
        changed = [
            replace(
                pair,
                log_attention=student_log_attention(z, None),
                logits=z,
                queries=q,
            )
            for pair, z, q in zip(pairs, inputs[:2], inputs[2:])
        ]
        return loss(changed, PRESENT)

    assert torch.autograd.gradcheck(value, (*logits, *queries))
    grads = torch.autograd.grad(
        value(*logits, *queries), (*logits, *queries), allow_unused=True
    )
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize('cls', LOSSES)
def test_absent_texts_weigh_nothing(cls):
    loss = make_loss(cls).double()
    pairs, other = make_pairs(), make_pairs()
    for pair in other:  # only the row that PRESENT leaves out
        pair.log_attention[0, 2] = torch.randn(N, dtype=torch.float64).log_softmax(-1)
        pair.target[0, 2] = 0
        pair.queries[0, 2] += 1
        pair.features[0, 2] -= 1
        pair.logits[0, :, 2] += 1
        pair.log_mass[0, 2] = torch.finfo(torch.float32).min
    assert loss(pairs, PRESENT).item() == pytest.approx(loss(other, PRESENT).item())


@pytest.mark.parametrize('cls', LOSSES)
def test_without_any_text_the_loss_is_zero_but_keeps_its_graph(cls):
    loss = make_loss(cls).double()
    pairs = make_pairs()
    for pair in pairs:
        pair.log_attention.requires_grad_()
        pair.logits.requires_grad_()
        pair.queries.requires_grad_()
    value = loss(pairs, torch.zeros(B, K, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    gradients = [
        g
        for p in pairs
        for g in (p.log_attention.grad, p.logits.grad, p.queries.grad)
        if g is not None
    ]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize('cls', LOSSES)
def test_the_weight_scales_the_loss(cls):
    one = make_loss(cls).double()
    three = make_loss(cls, loss_weight=3.0).double()
    three.load_state_dict(one.state_dict())
    pairs = make_pairs()
    assert three(pairs, PRESENT).item() == pytest.approx(3 * one(pairs, PRESENT).item())


def test_attention_is_the_mean_divergence_over_layers_and_present_texts():
    pairs = make_pairs()
    total, count = 0.0, 0
    for pair in pairs:
        for b in range(B):
            for k in range(K):
                if PRESENT[b, k]:
                    p, a = pair.target[b, k], pair.log_attention[b, k].exp()
                    total += sum(
                        float(x) * math.log(float(x / y)) for x, y in zip(p, a)
                    )
                    count += 1
    assert make_loss(InteractionAttentionLoss)(pairs, PRESENT).item() == pytest.approx(
        total / count
    )


def test_attention_is_zero_for_equal_maps_even_where_they_vanish():
    target = torch.tensor([[[0.0, 0.25, 0.75]]])
    pair = InteractionPair(target.clamp(min=1e-30).log(), target, torch.zeros(1, 1, D))
    loss = InteractionAttentionLoss()([pair], torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_relation_compares_likeness_among_present_texts_only():
    (pair,) = make_pairs(1)
    loss = make_loss(InteractionRelationLoss, temperature=0.5)

    def rows(x, image, texts):
        unit = F.normalize(x[image, texts], dim=-1)
        cosine = unit @ unit.T / 0.5
        return [
            cosine[i, [j for j in range(len(texts)) if j != i]].softmax(-1)
            for i in range(len(texts))
        ]

    expected = []
    for image, texts in ((0, [0, 1]), (1, [0, 1, 2])):
        for p, q in zip(
            rows(pair.features, image, texts), rows(pair.queries, image, texts)
        ):
            expected.append((p * (p / q).log()).sum())
    assert loss([pair], PRESENT).item() == pytest.approx(
        torch.stack(expected).mean().item()
    )


def test_relation_is_zero_when_queries_relate_as_the_features_do():
    (pair,) = make_pairs(1)
    pair.queries = (
        F.pad(pair.features, (0, 2)) * 7
    )  # same cosines, other width and size
    assert make_loss(InteractionRelationLoss)([pair], PRESENT).item() < 1e-12


def test_dynamics_compares_changes_and_not_maps():
    early, late = make_pairs(2)
    # the student changes as the teacher does, from another start
    change = late.target.log() - early.target.log()
    early.log_attention = (torch.randn(B, K, N, dtype=torch.float64)).log_softmax(-1)
    late.log_attention = early.log_attention + change
    exact = make_loss(InteractionDynamicsLoss, smoothing=1e-12)
    assert exact([early, late], PRESENT).item() < 1e-9
    late.log_attention = early.log_attention
    weight = (early.target + late.target) / 2
    expected = (weight * change.abs()).sum(-1)[PRESENT].mean()
    assert exact([early, late], PRESENT).item() == pytest.approx(expected.item())


def test_dynamics_stays_finite_for_maps_with_zeros():
    early, late = make_pairs(2)
    early.target[..., 0], late.log_attention[..., 1] = 0.0, -1e4
    assert math.isfinite(
        make_loss(InteractionDynamicsLoss)([early, late], PRESENT).item()
    )


def test_feature_is_one_minus_the_cosine_of_projected_queries():
    (pair,) = make_pairs(1)
    loss = make_loss(InteractionFeatureLoss).double()
    cosine = F.cosine_similarity(loss.proj(pair.queries), pair.features, dim=-1)
    expected = (1 - cosine)[PRESENT].mean()
    assert loss([pair], PRESENT).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    'cls, kwargs, message',
    [
        (InteractionRelationLoss, dict(temperature=0), 'temperature=0'),
        (InteractionDynamicsLoss, dict(smoothing=1.5), 'smoothing=1.5'),
    ],
)
def test_impossible_settings_are_refused(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


# -- which text a place belongs to -----------------------------------------------------
def text_pair(**changes):
    """Two texts, three places, one head; the second text is found twice as much."""
    target = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]]).double()
    fields = dict(
        log_attention=torch.zeros(1, 2, 3).double(),
        target=target,
        queries=torch.zeros(1, 2, D).double(),
        logits=torch.zeros(1, 1, 2, 3).double(),
        log_mass=torch.tensor([[0.0, math.log(2)]]).double(),
    )
    return InteractionPair(**{**fields, **changes})


def test_text_compares_what_the_texts_of_an_image_hold_of_each_place():
    both = torch.ones(1, 2, dtype=torch.bool)
    # masses 1 and 2: the first text holds 1/2, 1/5 and 1/3 of the places
    shares = [0.5, 0.2, 1 / 3]
    by_place = [s * math.log(2 * s) + (1 - s) * math.log(2 * (1 - s)) for s in shares]
    loss = InteractionTextLoss()
    assert loss([text_pair()], both).item() == pytest.approx(sum(by_place) / 3)
    valid = torch.tensor([[True, True, False]])
    value = loss([text_pair(valid=valid)], both).item()
    assert value == pytest.approx(sum(by_place[:2]) / 2)


def test_text_has_nothing_to_learn_where_the_student_has_the_teachers_raw_maps():
    both = torch.ones(1, 2, dtype=torch.bool)
    pair = text_pair()
    raw = pair.target.log() + pair.log_mass[..., None]
    heads = raw[:, None].repeat(1, HEADS, 1, 1) + torch.randn(1, HEADS, 1, 3)
    assert InteractionTextLoss()([replace(pair, logits=heads)], both).item() < 1e-12
    one = torch.tensor([[True, False]])
    assert InteractionTextLoss()([pair], one).item() == 0, 'nothing competes'


def test_text_says_nothing_of_places_where_every_map_vanishes():
    both = torch.ones(1, 2).bool()
    target = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]).double()
    value = InteractionTextLoss()([text_pair(target=target)], both)
    # two places that belong to one text each
    assert value.item() == pytest.approx(math.log(2))
    absent = torch.tensor([[True, False]])
    pair = text_pair(target=target, logits=torch.rand(1, 1, 2, 3).double())
    assert InteractionTextLoss()([pair], absent).item() == 0


def test_text_needs_a_teacher_that_tells_the_mass_of_its_maps():
    with pytest.raises(ValueError, match='Loss needs the mass .* give its targets'):
        InteractionTextLoss()([text_pair(log_mass=None)], torch.ones(1, 2).bool())
