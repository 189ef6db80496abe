"""What two forms of a detector find is compared."""

import torch
from mmengine.structures import InstanceData

from lfi_mmdet.engine.deploy import compare


def found(*scores, labels=None):
    """Detections far apart, with masks of four pixels each."""
    number = len(scores)
    corners = torch.arange(number)[:, None] * 20.0
    masks = torch.zeros(number, 8, 8, dtype=torch.bool)
    masks[:, :2, :2] = True
    return InstanceData(
        bboxes=corners + torch.tensor([0.0, 0, 10, 10]),
        scores=torch.tensor(scores),
        labels=torch.arange(number) if labels is None else torch.tensor(labels),
        masks=masks,
    )


def test_agreement_matches_objects_and_measures_how_they_differ():
    first = found(0.9, 0.8)
    second = first[[1, 0]]
    second.bboxes = second.bboxes + torch.tensor([0, 0, 0, 0.25])
    second.masks = second.masks.clone()
    second.masks[0, 0, 0] = False
    agreement = compare(first, second)
    assert agreement.alone == 0 and agreement.detections == 2
    # a pixel of four, however large the image is
    assert agreement.boxes == 0.25 and agreement.masks == 0.25
    assert agreement.within(0.25, 0, 0.25) and not agreement.within(0.2, 0, 0.25)
    nothing = found()
    assert compare(nothing, nothing).within(0, 0, 0)


def test_whatever_only_one_form_finds_is_told():
    assert compare(found(0.9), found()).alone == 1
    assert compare(found(), found(0.9)).alone == 1
    # other labels, of the same score
    wrong = compare(found(0.9, 0.9), found(0.9, 0.9, labels=[1, 0]))
    assert not wrong.within(1, 1, 1)
    assert '2 without a match' in compare(found(0.9), found(0.9, labels=[4])).text()
    assert compare(found(float('nan')), found(0.9)).alone == 0
    assert not compare(found(float('nan')), found(0.9)).within(1, 1, 1)


def test_what_the_other_form_just_missed_is_excused():
    # at the threshold
    assert compare(found(0.9, 0.0505), found(0.9), score_thr=0.05).alone == 0
    assert compare(found(0.9, 0.06), found(0.9), score_thr=0.05).alone == 1
    # as far as the other form has room for it
    assert compare(found(0.9, 0.8, 0.7), found(0.9, 0.8), max_per_img=2).alone == 0
    assert compare(found(0.9, 0.8, 0.7), found(0.9, 0.8), max_per_img=3).alone == 1


def test_objects_of_equal_scores_are_told_apart_by_their_masks():
    first = found(0.9, 0.9, labels=[0, 0])
    first.bboxes = torch.zeros(2, 4)
    first.masks[1] = first.masks[1].flip(0)
    second = first[[1, 0]]
    assert compare(first, second).within(0, 0, 0)
