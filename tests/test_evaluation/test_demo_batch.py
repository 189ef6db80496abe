"""Costs are measured on the same work, whatever the weights."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from lfi_mmdet.evaluation import demo_data, full_proposals, head_work
from lfi_mmdet.evaluation.demo_batch import num_classes


@pytest.fixture
def student(tiny_config):
    cfg = copy.deepcopy(tiny_config.model)
    cfg.teacher = None
    return MODELS.build(cfg)


def test_every_image_shows_as_many_objects_and_classes_as_asked_for():
    data = demo_data(80, (64, 96), batch_size=2)
    assert [image.shape for image in data['inputs']] == [(3, 64, 96)] * 2
    seen = []
    for sample in data['data_samples']:
        instances = sample.gt_instances
        assert len(instances) == len(instances.masks) == 7
        counts = instances.labels.bincount()
        assert sorted(counts[counts > 0].tolist()) == [2, 2, 3]
        seen.append(set(instances.labels.tolist()))
    assert seen[0] != seen[1] and max(seen[0] | seen[1]) < 80
    again = demo_data(80, (64, 96), batch_size=2)
    assert all(map(torch.equal, data['inputs'], again['inputs']))
    assert set(again['data_samples'][1].gt_instances.labels.tolist()) == seen[1]


def test_a_dataset_of_one_class_has_objects_of_it():
    (sample,) = demo_data(1, (64, 64))['data_samples']
    assert sample.gt_instances.labels.tolist() == [0] * 7


def test_the_rpn_hands_on_all_it_may_even_if_its_boxes_coincide(student):
    for parameter in student.rpn_head.rpn_reg.parameters():
        nn.init.zeros_(parameter)
    student.rpn_head.test_cfg.update(max_per_img=60, nms=dict(iou_threshold=0.01))
    inputs = student.data_preprocessor(demo_data(3, (64, 64)))
    with head_work(student) as alone:
        student(**inputs, mode='tensor')
    with full_proposals(student), head_work(student) as full:
        student(**inputs, mode='tensor')
    assert alone['boxes'] < full['boxes'] == 60


def test_in_training_as_many_regions_are_sampled_as_the_config_says(student):
    proposals = student.train_cfg.rpn_proposal
    proposals.update(max_per_img=60, nms=dict(type='nms', iou_threshold=0.01))
    student.roi_head.bbox_sampler.num = 50
    data = demo_data(3, (64, 64), batch_size=2)
    batch = student.data_preprocessor(data, training=True)
    with head_work(student) as alone:
        student(**batch, mode='loss')
    with full_proposals(student), head_work(student) as full:
        student(**batch, mode='loss')
    assert alone['boxes'] < full['boxes'] == 2 * 50
    assert 0 < full['masks'] <= full['boxes']
    assert not student.roi_head.bbox_head._forward_pre_hooks


def test_positives_are_as_many_as_asked_for(student):
    sampler = student.roi_head.bbox_sampler
    sampler.num, sampler.pos_fraction = 60, 0.75
    student.train_cfg.rpn_proposal.max_per_img = 100
    data = demo_data(3, (64, 64), batch_size=2)
    batch = student.data_preprocessor(data, training=True)
    works = {}
    for positives in (9, 50):
        with full_proposals(student, positives), head_work(student) as work:
            student(**batch, mode='loss')
        works[positives] = work
    # besides those asked for, the ground truth and what the RPN finds by chance
    assert works[9]['boxes'] == works[50]['boxes'] == 2 * 60
    assert 2 * (9 + 7) <= works[9]['masks'] < works[50]['masks'] == 2 * 45
    assert 'loss_and_predict' not in vars(student.rpn_head)


def test_the_rpn_is_itself_again_afterwards(student):
    configs = student.rpn_head.test_cfg, student.train_cfg.rpn_proposal
    before = [config.nms.iou_threshold for config in configs]
    with pytest.raises(KeyError), full_proposals(student, positives=3):
        assert [config.nms.iou_threshold for config in configs] == [1, 1]
        raise KeyError
    assert [config.nms.iou_threshold for config in configs] == before != [1, 1]


def test_a_detector_without_an_rpn_is_left_alone():
    with full_proposals(nn.Linear(1, 1)), head_work(nn.Linear(1, 1)) as seen:
        pass
    assert seen == {}


def test_a_model_that_does_not_tell_its_classes_is_refused():
    with pytest.raises(TypeError, match='number of classes of a Linear'):
        num_classes(nn.Linear(1, 1))
