"""RandomTeacher is the same network with nothing left of what it has learned."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from lfi_mmdet.models.teachers import RandomTeacher
from lfi_mmdet.models.teachers.random_weights import shuffle_weights

from .tiny_open_clip import CLASSES, some_images

PRESENT = torch.tensor([[True, True, False], [False, True, True]])


@pytest.fixture(params=['CoCaTeacher', 'CLIPTeacher'])
def inner(request, saved):
    model = {'CoCaTeacher': 'tiny-coca', 'CLIPTeacher': 'tiny-clip'}[request.param]
    return dict(type=request.param, model=model, pretrained=saved(model)[1])


def test_it_says_something_else_than_the_trained_one_but_of_the_same_form(inner):
    named = dict(inner, class_names=list(CLASSES))
    plain, teacher = MODELS.build(named), RandomTeacher(named)
    a, b = (one.interact(some_images(), PRESENT) for one in (plain, teacher))
    assert teacher.weights_hash() != plain.weights_hash()
    rows = PRESENT[:, None].expand(-1, teacher.num_layers, -1)
    assert (a.maps - b.maps)[rows].abs().sum((-2, -1)).min() > 1e-4
    torch.testing.assert_close(b.maps.sum((-2, -1)), torch.ones(b.maps.shape[:3]))
    assert a.features.shape == b.features.shape and b.features.isfinite().all()


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_one_alone(inner):
    state = torch.get_rng_state()
    first, again, other = (RandomTeacher(inner, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.weights_hash() == again.weights_hash() != other.weights_hash()


def test_every_tensor_keeps_its_numbers_and_none_its_order(inner):
    trained = MODELS.build(inner).network
    network = RandomTeacher(inner).network
    for name, value in network.named_parameters():
        before = trained.get_parameter(name)
        assert torch.equal(value.flatten().sort()[0], before.flatten().sort()[0]), name
        if before.unique().numel() > 20:
            assert (value == before).float().mean() < 0.5, name
    for name, value in network.named_buffers():  # such as the causal mask
        assert torch.equal(value, trained.get_buffer(name)), name


def test_texts_are_encoded_by_the_random_network_whenever_they_are_known(inner):
    early = RandomTeacher(dict(inner, class_names=list(CLASSES)))
    late = RandomTeacher(inner)
    late.set_class_names(CLASSES)
    trained = MODELS.build(dict(inner, class_names=list(CLASSES)))
    assert early.class_names == late.class_names == CLASSES
    for name, value in early.texts.items():
        torch.testing.assert_close(value, late.texts[name])
    if 'embeds' in trained.texts:  # CLIP's; CoCa keeps tokens
        assert not torch.allclose(trained.texts['embeds'], early.texts['embeds'])


def test_it_is_frozen_after_it_was_shuffled(inner):
    teacher = RandomTeacher(dict(inner, precision='bfloat16'))
    teacher.verify()
    weights = list(teacher.network.parameters())
    assert {w.dtype for w in weights} == {torch.bfloat16}
    assert not any(w.requires_grad for w in weights)
    assert not any(m.training for m in teacher.network.modules())
    weights[-1].data += 1
    with pytest.raises(RuntimeError, match='changed after they were loaded'):
        teacher.verify()


def test_statistics_of_norms_are_shuffled_and_counters_are_not():
    network = nn.Sequential(nn.BatchNorm1d(50), nn.BatchNorm1d(2, affine=False))
    norm = network[0]
    norm.running_var.copy_(1 + torch.arange(50.0))
    norm.running_mean.copy_(torch.arange(50.0))
    norm.num_batches_tracked.fill_(7)
    shuffle_weights(network, 0)
    assert not torch.equal(norm.running_var, 1 + torch.arange(50.0))
    assert torch.equal(norm.running_var.sort()[0], 1 + torch.arange(50.0))
    assert not torch.equal(norm.running_mean, norm.running_var - 1)
    assert norm.num_batches_tracked == 7


def test_each_of_several_teachers_is_shuffled(inner):
    both = dict(type='EnsembleTeacher', teachers=[inner, inner], class_names=CLASSES)
    teacher = RandomTeacher(both)
    plain = MODELS.build(inner).weights_hash()
    hashes = {one.weights_hash() for one in teacher.teachers}
    assert len(hashes) == 1 and plain not in hashes
    teacher.verify()


@pytest.mark.parametrize('between', ['ShuffledTeacher', 'UniformTeacher'])
def test_another_control_may_stand_between_it_and_the_network(inner, between):
    named = dict(inner, class_names=list(CLASSES))
    teacher = RandomTeacher(dict(type=between, teacher=named))
    teacher.verify()
    assert teacher.weights_hash() == RandomTeacher(named).weights_hash()
    assert 'network' not in vars(teacher.inner)  # it is that of the teacher inside
    next(teacher.network.parameters()).data += 1
    with pytest.raises(RuntimeError, match='changed after they were loaded'):
        teacher.verify()


def test_what_has_no_weights_cannot_be_random(inner):
    with pytest.raises(ValueError, match="'GroundTruthTeacher' has no network whose"):
        RandomTeacher(dict(type='GroundTruthTeacher'))
    with pytest.raises(ValueError, match='teacher.seed=-1 is negative'):
        RandomTeacher(inner, seed=-1)
