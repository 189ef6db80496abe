"""Choosing masks in tensors whose shapes do not depend on the image.

As in :mod:`.fixed_shapes`, what mmdet drops stays with a score of 0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from .fixed_shapes import above

#: Pairs of place and class whose masks SOLOv2 computes
MAX_MASKS = 1000


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Stands in for ``mask2bbox`` of ``mmdet.structures.mask``.

    Args:
        masks: (N, H, W) of bool.

    Returns:
        (N, 4) as x1, y1, x2, y2 in pixels; zeros for empty masks.
    """
    firsts, lasts = [], []
    for dim in (1, 2):  # columns, then rows
        hit = masks.any(dim=dim)
        size = hit.shape[1]
        places = torch.arange(size, device=masks.device)
        firsts.append(torch.where(hit, places, size).amin(dim=1))
        lasts.append(torch.where(hit, places + 1, 0).amax(dim=1))
    boxes = torch.stack(firsts + lasts, dim=1).float()
    return torch.where(boxes[:, 2:3] > 0, boxes, torch.zeros_like(boxes))


def maskness(logits: Tensor) -> Tensor:
    """Mean probability of the pixels of each mask, a factor of its score.

    Args:
        logits: (N, H, W).

    Returns:
        (N,); 0 for empty masks.
    """
    masks = logits > 0
    total = (logits.sigmoid() * masks).sum(dim=(1, 2))
    return total / (masks.sum(dim=(1, 2)) + 1e-6)


def query_masks(
    logits: Tensor,
    mask_logits: Tensor,
    shape: tuple[int, int],
    num_things: int,
    max_num: int,
) -> InstanceData:
    """Choose as ``MaskFormerFusionHead.instance_postprocess`` does.

    Args:
        logits: (Q, C + 1) of each query, the background last.
        mask_logits: (Q, h, w).
        shape: Height and width of the image in pixels.
        num_things: The first of the C classes, which are instances.
        max_num: How many to keep.

    Returns:
        Detections, best first, with the logits (K, h, w) of their masks.
    """
    num_classes = logits.shape[1] - 1
    scores, indices = torch.topk(
        logits.softmax(dim=-1)[:, :-1].reshape(-1), max_num, sorted=False
    )
    labels = indices % num_classes
    chosen = mask_logits[torch.div(indices, num_classes, rounding_mode='floor')]
    full = F.interpolate(chosen[None], size=shape, mode='bilinear')[0]
    masks = full > 0
    scores = scores * maskness(full)
    scores = torch.where(labels < num_things, scores, torch.zeros_like(scores))
    top, order = torch.topk(scores, max_num)
    return InstanceData(
        bboxes=boxes_of_masks(masks)[order],
        scores=top,
        labels=labels[order],
        masks=chosen[order],
    )


def grid_masks(
    kernels: Tensor,
    scores: Tensor,
    features: Tensor,
    strides: Tensor,
    size: int,
    cfg: Any,
    max_candidates: int = MAX_MASKS,
) -> InstanceData:
    """Choose as ``SOLOV2Head._predict_by_feat_single`` does, with its Matrix NMS.

    Args:
        kernels: (N, D) of all places.
        scores: (N, C), those that are no local maximum 0.
        features: (1, d, h, w) that the kernels are applied to.
        strides: (N,) in pixels; a mask of no more cells than that does not count.
        size: Side of the kernels.
        cfg: The head's ``test_cfg``.
        max_candidates: How many pairs of place and class get a mask, the best; mmdet
            has no such limit.

    Returns:
        Detections, best first, with probabilities (K, h', w') of their masks; boxes are
        zeros, as in mmdet.
    """
    num_classes = scores.shape[1]
    candidates = above(scores.reshape(-1), cfg.score_thr)
    top, indices = torch.topk(candidates, min(max_candidates, len(candidates)))
    places = torch.div(indices, num_classes, rounding_mode='floor')
    labels = indices % num_classes
    chosen = kernels[places]
    chosen = chosen.reshape(len(indices), -1, size, size)
    probabilities = F.conv2d(features, chosen)[0].sigmoid()
    masks = (probabilities > cfg.mask_thr).to(probabilities)
    area = masks.sum(dim=(1, 2))
    mean = (probabilities * masks).sum(dim=(1, 2)) / area.clamp(min=1)
    counts = area > strides[places]
    top = torch.where(counts, top * mean, torch.zeros_like(top))
    top, order = torch.topk(top, _limit(cfg.nms_pre, len(top)))
    # what does not count is to overlap nothing, itself neither
    alive = top > 0
    masks, area = masks[order].flatten(1) * alive[:, None], area[order] * alive
    labels = labels[order]
    top = top * matrix_decay(masks, area, labels, cfg.kernel, cfg.sigma)
    if cfg.filter_thr > 0:
        top = torch.where(top >= cfg.filter_thr, top, torch.zeros_like(top))
    top, kept = torch.topk(top, _limit(cfg.max_per_img, len(top)))
    return InstanceData(
        bboxes=top.new_zeros(len(top), 4),
        scores=top,
        labels=labels[kept],
        masks=probabilities[order[kept]],
    )


def _limit(number: int, most: int) -> int:
    return min(number, most) if number > 0 else most


def matrix_decay(
    masks: Tensor, area: Tensor, labels: Tensor, kernel: str, sigma: float
) -> Tensor:
    """What Matrix NMS multiplies scores by (SOLOv2, section 3.3).

    Args:
        masks: (N, P) of 0 and 1, best first.
        area: (N,), their sums.
        labels: (N,).
        kernel: ``'gaussian'`` or ``'linear'``.
        sigma: Of the Gaussian.
    """
    shared = masks @ masks.T
    union = area[:, None] + area[None] - shared
    same = labels[:, None] == labels[None]
    # [i, j]: how much j overlaps a better i of its class
    overlap = (shared / union.clamp(min=1) * same).triu(diagonal=1)
    # how much i itself is overlapped
    covered = overlap.amax(dim=0)[:, None]
    if kernel == 'gaussian':
        decay = torch.exp(-sigma * overlap**2) / torch.exp(-sigma * covered**2)
    else:
        decay = (1 - overlap) / (1 - covered)
    return decay.amin(dim=0)
