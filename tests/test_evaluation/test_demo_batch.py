"""Costs are measured on the same work, whatever the weights."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from lfi_mmdet.evaluation import DemoBatch
from lfi_mmdet.evaluation.demo_batch import full_proposals, num_classes


@pytest.fixture
def student(tiny_config):
    cfg = copy.deepcopy(tiny_config.model)
    cfg.teacher = None
    return MODELS.build(cfg)


def test_the_rpn_hands_on_all_it_may_even_if_its_boxes_coincide(student):
    for parameter in student.rpn_head.rpn_reg.parameters():
        nn.init.zeros_(parameter)
    student.rpn_head.test_cfg.update(max_per_img=60, nms=dict(iou_threshold=0.01))
    batch = DemoBatch(student, (64, 64))
    alone = student.rpn_head.predict(
        student.extract_feat(batch.inputs['inputs']), batch.inputs['data_samples']
    )
    batch.forward()
    assert len(alone[0]) < batch.proposals == 60


def test_the_rpn_is_itself_again_afterwards(student):
    rpn = student.rpn_head
    threshold = rpn.test_cfg.nms.iou_threshold
    with pytest.raises(KeyError), full_proposals(student):
        assert rpn.test_cfg.nms.iou_threshold == 1
        raise KeyError
    assert rpn.test_cfg.nms.iou_threshold == threshold
    assert 'predict' not in vars(rpn)


def test_a_detector_without_an_rpn_is_left_alone():
    with full_proposals(nn.Linear(1, 1)) as seen:
        pass
    assert seen == []


def test_labels_cover_the_classes_and_no_more(student):
    batch = DemoBatch(student, (64, 64), num_boxes=200)
    labels = batch.data['data_samples'][0].gt_instances.labels
    assert labels.unique().tolist() == [0, 1, 2]


def test_the_forward_pass_keeps_the_mode_and_a_train_step_leaves_no_gradients(student):
    batch = DemoBatch(student, (64, 80), num_boxes=3)
    student.train()
    batch.forward()
    assert student.training
    reached = []
    weight = student.backbone.patch_embed.proj.weight
    weight.register_post_accumulate_grad_hook(lambda p: reached.append(p.grad.norm()))
    before = weight.clone()
    batch.train_step()
    batch.train_step()
    assert len(reached) == 2 and all(norm > 0 for norm in reached)
    assert torch.equal(weight, before)
    assert all(p.grad is None for p in student.parameters())


def test_a_model_that_does_not_tell_its_classes_is_refused():
    with pytest.raises(TypeError, match='number of classes of a Linear'):
        num_classes(nn.Linear(1, 1))
