"""What a detector takes regions for, without any label."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from torch import Tensor

from lfi_mmdet.models.distillers.base import RegionHead


def region_head(detector: Any) -> RegionHead | None:
    """What finds and classifies regions in a detector; None if it has no such parts.

    Args:
        detector: A two-stage detector, or any other model.
    """
    head = getattr(detector, 'roi_head', None)
    if not isinstance(head, StandardRoIHead) or not detector.with_rpn:
        return None
    if type(head)._bbox_forward is not StandardRoIHead._bbox_forward:
        return None  # several stages, or features of its own
    return partial(classify_proposals, detector)


def classify_proposals(
    detector: Any,
    outputs: tuple[Tensor, ...],
    img_shapes: Sequence[tuple[int, int]],
    count: int,
) -> tuple[Tensor, Tensor]:
    """Class logits of the best proposals of the RPN.

    Neck, RPN and box head are run once more: the losses of a detector keep neither
    proposals nor logits, and training mixes the true boxes into the proposals, which
    images without labels have not. No gradient flows into the RPN.

    Args:
        detector: A two-stage detector.
        outputs: What its backbone returned.
        img_shapes: (height, width) in pixels of each image without padding.
        count: Most proposals per image.

    Returns:
        See :data:`RegionHead`.
    """
    features = detector.neck(outputs) if detector.with_neck else outputs
    samples = [
        DetDataSample(
            metainfo=dict(img_shape=tuple(shape[:2]), scale_factor=(1.0, 1.0))
        )
        for shape in img_shapes
    ]
    with torch.no_grad():
        found = detector.rpn_head.predict(features, samples, rescale=False)
    boxes = bbox2roi([proposals.bboxes[:count] for proposals in found])
    logits = detector.roi_head._bbox_forward(features, boxes)['cls_score']
    return boxes, logits
