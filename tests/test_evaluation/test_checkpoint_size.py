"""Every byte of a checkpoint is accounted for."""

import pytest
import torch

from lfi_mmdet.evaluation import Setting, Variant, build_subjects, checkpoint_bytes
from lfi_mmdet.evaluation.checkpoint_size import part_of

MEASURES = ('checkpoint',)


@pytest.fixture
def subjects(tiny_config):
    path = tiny_config.filename
    plain = {'model.backbone.num_queries': 0}
    return build_subjects(
        Variant('twin', path, 'none', MEASURES, options=plain),
        [Variant('lfi', path, 'online', MEASURES)],
        Setting(shape=(64, 64)),
    )


def weights(module):
    return sum(p.numel() for p in module.parameters())


def test_a_checkpoint_is_the_twin_the_interaction_and_nothing_of_the_teacher(subjects):
    twin, lfi = subjects
    # a teacher that has something to hide
    lfi.model.teacher.network = torch.nn.Linear(1000, 1000)
    plain, ours = (checkpoint_bytes(s.step, twin.model) for s in subjects)
    backbone = lfi.model.backbone
    added = [backbone.queries, *backbone.interaction.parameters()]
    # weights and two moments; AdamW also counts the steps of each parameter
    expected = sum(4 * 3 * p.numel() + 4 for p in added)
    assert ours['interaction'] == expected
    assert ours['detector'] == plain['detector'] > 4 * 3 * weights(twin.model)
    assert plain['interaction'] == plain['distiller'] == 0
    assert ours['teacher'] == plain['teacher'] == 0
    # names and zip entries, and no room for 4 MB
    assert 0 < ours['container'] < 2**20


@pytest.mark.parametrize('where', ['state_dict', 'optimizer'])
def test_a_teacher_in_the_checkpoint_is_found(subjects, where):
    twin, lfi = subjects
    network = torch.nn.Linear(20, 10, bias=False)
    if where == 'state_dict':
        lfi.model.network = network
        expected = 4 * 200
    else:
        group = dict(params=[network.weight], lr=0.0)
        lfi.step.optimizer.optimizer.add_param_group(group)
        network.weight.grad = torch.ones(10, 20)
        expected = 4 * (2 * 200 + 1)
    assert checkpoint_bytes(lfi.step, twin.model)['teacher'] == expected


def test_a_distiller_is_saved_for_resuming_and_is_no_teacher(subjects):
    twin, lfi = subjects
    lfi.model.distiller.register_parameter('extra', torch.nn.Parameter(torch.ones(8)))
    found = checkpoint_bytes(lfi.step, twin.model)
    assert (found['distiller'], found['teacher']) == (32, 0)


def test_weights_belong_to_the_part_their_name_says():
    known = {'backbone.pos_embed', 'backbone.interaction_free.weight'}
    assert part_of('backbone.pos_embed', known) == 'detector'
    assert part_of('backbone.interaction_free.weight', known) == 'detector'
    assert part_of('backbone.interaction.carry', known) == 'interaction'
    assert part_of('backbone.queries', known) == 'interaction'
    assert part_of('distiller.losses.feature.weight', known) == 'distiller'
    assert part_of('teacher.visual.proj', known) == 'other'
