"""Compares what two forms of a detector find in the same image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

#: A score that is no further than this above what the other form had to reach may be
#: found by one form only
MARGIN = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How well two forms agree.

    Attributes:
        detections: How many the first form has.
        boxes: Largest difference of a coordinate, in pixels.
        scores: Largest difference of a score.
        masks: Largest share of the pixels of either mask that only one of both has,
            1 - IoU.
        alone: Detections of either form without a match, apart from those that the
            other may just have missed, see :func:`compare`.
    """

    detections: int
    boxes: float
    scores: float
    masks: float
    alone: int

    def within(self, boxes: float, scores: float, masks: float) -> bool:
        """Whether the forms agree to within tolerances, and none is alone."""
        return (
            self.alone == 0
            and self.boxes <= boxes
            and self.scores <= scores
            and self.masks <= masks
        )

    def text(self) -> str:
        """All of it, for people."""
        return (
            f'{self.detections} detections; largest differences: boxes '
            f'{self.boxes:.2g} pixels, scores {self.scores:.2g}, masks '
            f'{100 * self.masks:.2g}% of their pixels; {self.alone} without a match'
        )


def compare(
    first: InstanceData,
    second: InstanceData,
    score_thr: float = 0.0,
    max_per_img: int | None = None,
) -> Agreement:
    """Match detections of the same label, and measure how they differ.

    One form may have a detection that the other just misses: if its score is close to
    the threshold, or, where the other form is full, to the lowest that this one has.

    Args:
        first: ``bboxes`` (N, 4), ``scores`` (N,), ``labels`` (N,), and ``masks``
            (N, H, W) of bool if there are any.
        second: Such, of the other form.
        score_thr: What scores have to exceed.
        max_per_img: How many detections a form has at most.
    """
    distance = torch.cdist(first.bboxes, second.bboxes, p=torch.inf)
    apart = (first.scores[:, None] - second.scores[None]).abs()
    other = first.labels[:, None] != second.labels[None]
    # a difference of 0.001 in score counts as much as one pixel, or as 1% of a mask
    cost = distance + 1e3 * apart + 1e6 * other
    if 'masks' in first:
        cost = cost + 100 * (1 - _coarse_iou(first.masks, second.masks))
    cost = cost.nan_to_num(nan=1e9)
    rows, columns = (
        torch.as_tensor(side) for side in linear_sum_assignment(cost.numpy())
    )
    same = ~other[rows, columns]
    # nothing is said of pairs that are not the same object
    rows, columns = rows[same], columns[same]
    alone = 0
    for mine, theirs, matched in ((first, second, rows), (second, first, columns)):
        needed = score_thr
        if max_per_img is not None and len(theirs.scores) >= max_per_img > 0:
            needed = max(needed, float(theirs.scores.min()))
        free = torch.ones(len(mine.scores), dtype=torch.bool)
        free[matched] = False
        alone += int((free & ~(mine.scores <= needed + MARGIN)).sum())
    masks = 0.0
    if 'masks' in first and len(rows):
        ours, theirs = first.masks[rows].flatten(1), second.masks[columns].flatten(1)
        either = (ours | theirs).sum(1)
        masks = float(((ours != theirs).sum(1) / either.clamp(min=1)).max())
    return Agreement(
        detections=len(first.scores),
        boxes=float(distance[rows, columns].max()) if len(rows) else 0.0,
        scores=float(apart[rows, columns].max()) if len(rows) else 0.0,
        masks=masks,
        alone=alone,
    )


def _coarse_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of all pairs of masks, on every fourth pixel."""
    ours, theirs = (masks[:, ::4, ::4].flatten(1).float() for masks in (first, second))
    shared = ours @ theirs.T
    either = ours.sum(1)[:, None] + theirs.sum(1)[None] - shared
    return shared / either.clamp(min=1)
