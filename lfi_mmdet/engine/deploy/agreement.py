"""Compares what two forms of a detector find in the same image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

#: Scores closer to the lowest one than this may be found by one form and not the other
MARGIN = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How well two forms agree.

    Attributes:
        detections: How many the first form has.
        boxes: Largest difference of a coordinate, in pixels.
        scores: Largest difference of a score.
        masks: Largest share of an image's pixels on which two masks differ.
        alone: Detections of either form without a match, apart from those whose score
            lies within :data:`MARGIN` of the lowest.
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
            f'{100 * self.masks:.2g}% of the pixels; {self.alone} without a match'
        )


def compare(first: InstanceData, second: InstanceData) -> Agreement:
    """Match detections of the same label, and measure how they differ.

    Args:
        first: ``bboxes`` (N, 4), ``scores`` (N,), ``labels`` (N,), and ``masks``
            (N, H, W) of bool if there are any.
        second: Such, of the other form.
    """
    distance = torch.cdist(first.bboxes, second.bboxes, p=torch.inf)
    apart = (first.scores[:, None] - second.scores[None]).abs()
    other = first.labels[:, None] != second.labels[None]
    # a difference of 0.001 in score counts as much as one pixel
    cost = distance + 1e3 * apart + 1e6 * other
    rows, columns = (
        torch.as_tensor(side) for side in linear_sum_assignment(cost.numpy())
    )
    same = ~other[rows, columns]
    # nothing is said of pairs that are not the same object
    rows, columns = rows[same], columns[same]
    everything = torch.cat([first.scores, second.scores])
    least = float(everything.min()) + MARGIN if len(everything) else 0.0
    alone = 0
    for scores, matched in ((first.scores, rows), (second.scores, columns)):
        free = torch.ones(len(scores), dtype=torch.bool)
        free[matched] = False
        alone += int((free & (scores > least)).sum())
    masks = 0.0
    if 'masks' in first and len(rows):
        differs = first.masks[rows] != second.masks[columns]
        masks = float(differs.flatten(1).float().mean(1).max())
    return Agreement(
        detections=len(first.scores),
        boxes=float(distance[rows, columns].max()) if len(rows) else 0.0,
        scores=float(apart[rows, columns].max()) if len(rows) else 0.0,
        masks=masks,
        alone=alone,
    )
