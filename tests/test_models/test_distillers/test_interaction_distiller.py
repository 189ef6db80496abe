"""The distiller as a whole: one grid, named losses, nothing silently off."""

import math

import pytest
import torch

from lfi_mmdet.models.distillers import InteractionDistiller
from lfi_mmdet.models.distillers.interaction_distiller import student_log_attention
from lfi_mmdet.models.losses.relation import cosines
from lfi_mmdet.structures import InteractionSpec, InteractionTargets, InteractionTrace

SPEC = InteractionSpec(layers=(1, 3), num_queries=3, embed_dims=8, feedback=True)
ALL = dict(
    attention=dict(type='InteractionAttentionLoss'),
    relation=dict(type='InteractionRelationLoss'),
    dynamics=dict(type='InteractionDynamicsLoss'),
    feature=dict(type='InteractionFeatureLoss'),
)


def make_distiller(losses=ALL, teacher_layers=2, feature_dims=5, **kwargs):
    return InteractionDistiller(SPEC, teacher_layers, feature_dims, losses, **kwargs)


def make_trace(valid=None) -> InteractionTrace:
    return InteractionTrace(
        logits=[torch.randn(2, 2, 3, 16, requires_grad=True) for _ in range(2)],
        queries=[torch.randn(2, 3, 8, requires_grad=True) for _ in range(2)],
        grid=(4, 4),
        valid=valid,
    )


def make_targets(texts=3) -> InteractionTargets:
    maps = torch.rand(2, 2, texts, 6, 6)
    return InteractionTargets(
        maps=maps / maps.sum((-2, -1), keepdim=True),
        present=torch.ones(2, texts, dtype=torch.bool),
        features=torch.randn(2, 2, texts, 5),
    )


def run(distiller, trace, targets):
    return distiller(trace, targets, [(32, 32)] * 2, (8, 8))


def test_a_loss_that_needs_masses_is_refused_when_built_if_there_are_none():
    losses = dict(text=dict(type='InteractionTextLoss'))
    make_distiller(losses, mass=True)
    message = r'distiller\.losses\.text \(InteractionTextLoss\) needs the mass .* cache'
    with pytest.raises(ValueError, match=message):
        make_distiller(losses, mass=False)


def test_every_loss_is_logged_under_its_name_and_reaches_the_student():
    trace = make_trace()
    losses = run(make_distiller(), trace, make_targets())
    assert set(losses) == {
        'loss_lfi_attention',
        'loss_lfi_relation',
        'loss_lfi_dynamics',
        'loss_lfi_feature',
    }
    sum(losses.values()).backward()
    assert all(t.grad.abs().sum() > 0 for t in trace.logits + trace.queries)


def test_a_student_that_looks_as_the_teacher_does_has_no_attention_loss():
    targets, trace = make_targets(), make_trace()
    distiller = make_distiller(dict(attention=ALL['attention']))
    pairs, _ = distiller.align(trace, targets, [(32, 32)] * 2, (8, 8))
    trace.logits = [p.target.log()[:, None].expand(-1, 2, -1, -1) for p in pairs]
    assert run(distiller, trace, targets)['loss_lfi_attention'].item() < 1e-6


def test_a_student_layer_is_compared_with_the_teacher_layer_beside_it():
    targets, trace = make_targets(), make_trace()
    few = make_distiller(dict(attention=ALL['attention']))
    (one, other), _ = few.align(trace, targets, [(32, 32)] * 2, (8, 8))
    many = make_distiller(dict(attention=ALL['attention']), teacher_layers=5)
    assert many.pairs == [(0, 2), (1, 4)]
    noise = make_targets()
    targets.maps = torch.stack(
        [
            *noise.maps.unbind(1),
            targets.maps[:, 0],
            noise.maps[:, 0],
            targets.maps[:, 1],
        ],
        1,
    )
    targets.features = targets.features[:, [0, 0, 0, 0, 1]]
    found, _ = many.align(trace, targets, [(32, 32)] * 2, (8, 8))
    for pair, expected in zip(found, (one, other)):
        torch.testing.assert_close(pair.target, expected.target)
        torch.testing.assert_close(pair.features, expected.features)


def test_student_layers_may_share_a_layer_of_the_teacher():
    targets, trace = make_targets(), make_trace()
    distiller = make_distiller(dict(attention=ALL['attention']))
    _, last = distiller.align(trace, targets, [(32, 32)] * 2, (8, 8))[0]
    targets = targets.map(lambda value: value[:, -1:] if value.ndim > 2 else value)
    for mapping, count in (('uniform', 2), ('last', 1)):
        distiller = make_distiller(
            dict(attention=ALL['attention']), teacher_layers=1, layer_mapping=mapping
        )
        pairs, _ = distiller.align(trace, targets, [(32, 32)] * 2, (8, 8))
        assert len(pairs) == count
        for pair in pairs:
            torch.testing.assert_close(pair.target, last.target)
        assert torch.equal(pairs[-1].queries, trace.queries[1])


@pytest.mark.parametrize('name', sorted(ALL))
def test_rows_of_present_texts_alone_give_the_same_losses_and_gradients(name):
    present = torch.tensor([[True, False, True], [False, False, True]])
    distiller = make_distiller({name: ALL[name]})
    results = []
    for compact in (False, True):
        torch.manual_seed(0)
        trace, targets = make_trace(), make_targets()
        targets.present = present
        if compact:
            targets = targets.select(present)
            assert targets.maps.shape[2] == 2  # the most texts in an image
            assert targets.texts.tolist()[0] == [0, 2]
        loss = run(distiller, trace, targets)[f'loss_lfi_{name}']
        loss.backward()
        grads = [t.grad for t in trace.logits + trace.queries]
        results.append([loss, *(torch.zeros(()) if g is None else g for g in grads)])
    for all_rows, some_rows in zip(*results):
        torch.testing.assert_close(some_rows, all_rows)


def test_cosines_stand_in_for_features_in_the_relation_loss():
    distiller = make_distiller(
        dict(relation=ALL['relation']), feature_dims=None, relations=True
    )
    trace, targets = make_trace(), make_targets()
    expected = run(make_distiller(dict(relation=ALL['relation'])), trace, targets)
    targets.relations, targets.features = cosines(targets.features), None
    assert run(distiller, trace, targets) == expected
    with pytest.raises(ValueError, match='feature .* needs features'):
        make_distiller(ALL, feature_dims=None, relations=True)


def test_heads_are_averaged_as_probabilities_and_padding_is_left_out():
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[1, 12:] = False
    logits = torch.randn(2, 2, 3, 16)
    result = student_log_attention(logits, valid).exp()
    expected = logits[1, :, :, :12].softmax(-1).mean(0)
    torch.testing.assert_close(result[1, :, :12], expected)
    assert (result[1, :, 12:] == 0).all()
    assert math.isclose(result.sum().item(), 6, rel_tol=1e-5)


def test_losses_are_computed_in_float32_under_autocast():
    trace, targets = make_trace(), make_targets()
    distiller = make_distiller()
    expected = run(distiller, trace, targets)
    with torch.autocast('cpu', torch.bfloat16):
        losses = run(distiller, trace, targets)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == expected[name].item()


def test_a_loss_set_to_none_is_off():
    distiller = make_distiller(dict(ALL, relation=None, feature=None))
    losses = run(distiller, make_trace(), make_targets())
    assert set(losses) == {'loss_lfi_attention', 'loss_lfi_dynamics'}
    assert distiller.last_supervised() == (1, None)


def test_after_the_stop_all_losses_are_zero_and_still_reach_every_tensor():
    trace = make_trace()
    distiller = make_distiller()
    losses = run(distiller, trace, None)
    assert [v.item() for v in losses.values()] == [0] * 4
    sum(losses.values()).backward()
    assert all(t.grad is not None for t in trace.logits + trace.queries)
    assert all(p.grad is not None for p in distiller.parameters())


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(losses=dict(attention=dict(type='InteractionAttnLoss'))), KeyError,
         "distiller.losses.attention.type='InteractionAttnLoss' is not registered"),
        (dict(losses=dict(attention=dict(type='L1Loss'))), TypeError,
         "'L1Loss' is not a InteractionLoss"),
        (dict(losses={}), ValueError, 'names no loss'),
        (dict(feature_dims=None), ValueError, 'relation .* needs features'),
        (dict(layer_mapping='last'), ValueError, 'needs at least 2 supervised layers'),
        (dict(layer_mapping='first'), ValueError, 'choose from'),
    ],
)  # fmt: skip
def test_impossible_configs_are_refused_when_built(kwargs, error, message):
    with pytest.raises(error, match=message):
        make_distiller(**kwargs)


def test_another_number_of_texts_than_queries_is_refused():
    with pytest.raises(ValueError, match='4 texts, but backbone.num_queries=3'):
        run(make_distiller(), make_trace(), make_targets(texts=4))


def test_further_texts_have_queries_of_their_own():
    make_distiller().check_classes(2, num_more=1)
    message = '3 class names and 1 teacher.more_texts, but backbone.num_queries=3; .*'
    with pytest.raises(ValueError, match=message + 'after the classes'):
        make_distiller().check_classes(3, num_more=1)
    tied = make_distiller(assignment=dict(type='HungarianAssignment', num_tied=2))
    tied.check_classes(1, num_more=1)
    with pytest.raises(ValueError, match='1 teacher.more_texts.*choose 3, or 0'):
        tied.check_classes(2, num_more=1)
