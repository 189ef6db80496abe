"""Boxes of a recorded graph are chosen as mmdet chooses them."""

import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from lfi_mmdet.engine.deploy import fixed_shapes, rewrites


def test_proposals_that_are_suppressed_are_known_from_any_head():
    results = InstanceData(
        bboxes=torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30.0]]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor([0, 0, 0]),
    )
    cfg = ConfigDict(nms=dict(iou_threshold=0.5), max_per_img=3)
    found = rewrites._dense_boxes(True, results, cfg)
    assert found.scores.tolist() == [pytest.approx(0.9), pytest.approx(0.7), 0]
    assert found.bboxes[2].tolist() == [0, 0, 0, 0]
    assert rewrites._dense_boxes(False, results, cfg).bboxes[2].tolist() != [0] * 4


@pytest.mark.parametrize('threshold, most', [(0.05, 4096), (1e-4, 32768)])
def test_a_low_threshold_lets_more_candidates_pass(threshold, most):
    number, classes = 1000, 40
    boxes = torch.arange(number)[:, None] * 100.0 + torch.tensor([1.0, 1, 9, 9])
    scores = torch.full((number, classes + 1), 0.5)
    # all places apart: whatever passes is kept
    found, _ = fixed_shapes.multiclass_nms(
        boxes, scores, threshold, dict(iou_threshold=0.5)
    )
    assert len(found) == most and (found[:, 4] > 0).all()


def test_the_best_are_those_of_mmcv_with_zeros_behind():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30.0]]
    )
    scores = torch.tensor([0.5, 0.9, 0.4, 0.8])
    labels = torch.tensor([0, 0, 1, 0])
    nms = dict(type='nms', iou_threshold=0.5)
    dets, kept = batched_nms(boxes, scores, labels, nms)
    top, indices = fixed_shapes.best(boxes, scores, labels, nms, 4)
    assert kept.tolist() == indices[:3].tolist() == [1, 3, 2]
    assert top.tolist() == [*dets[:, 4].tolist(), 0]
    # over all classes, the third is suppressed as well
    nms['class_agnostic'] = True
    top, indices = fixed_shapes.best(boxes, scores, labels, nms, 2)
    assert indices.tolist() == [1, 3]
    with pytest.raises(ValueError, match='soft_nms.*choose nms'):
        fixed_shapes.best(boxes, scores, labels, dict(type='soft_nms'), 2)


def test_small_boxes_and_low_scores_do_not_count():
    results = InstanceData(
        bboxes=torch.tensor([[0, 0, 1, 9], [0, 0, 9, 9.0]]),
        scores=torch.tensor([0.9, 0.8]),
        score_factors=torch.tensor([1.0, 0.5]),
        labels=torch.tensor([0, 0]),
    )
    cfg = ConfigDict(min_bbox_size=2, nms=dict(iou_threshold=0.5), max_per_img=2)
    scores, indices = fixed_shapes.best_of_head(results, cfg)
    assert indices[0] == 1 and scores.tolist() == [pytest.approx(0.4), 0]
    table = torch.tensor([[0.1, 0.6], [0.3, 0.2]])
    scores, labels, places, values = fixed_shapes.filter_scores_and_topk(
        table, 0.15, 3, dict(name=torch.tensor([7, 8]))
    )
    assert scores.tolist() == pytest.approx([0.6, 0.3, 0.2])
    assert labels.tolist() == [1, 0, 1] and places.tolist() == [0, 1, 1]
    assert values['name'].tolist() == [7, 8, 8]
