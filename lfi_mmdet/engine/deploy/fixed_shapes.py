"""Choosing detections in tensors whose shapes do not depend on the image.

mmdet drops what falls below a threshold or is suppressed, so its shapes follow from the
picture, and no graph can be recorded of it. Here such candidates stay, with a score of
0: they rank last, suppress nothing that counts, and whoever reads the result skips
them.
"""

from __future__ import annotations

from typing import Any

import torch

# registers torch.ops.torchvision.nms
import torchvision  # noqa: F401
from mmengine.structures import InstanceData
from torch import Tensor

#: Of the candidates of a second stage, those that reach its NMS, and as many where the
#: threshold is so low that most of them do
MAX_CANDIDATES, MANY_CANDIDATES = 4096, 32768
_LOW = 0.01
#: Entries of an NMS config that are followed
_KNOWN = ('type', 'iou_threshold', 'class_agnostic', 'split_thr')


def best(
    boxes: Tensor, scores: Tensor, groups: Tensor, nms: dict[str, Any], max_num: int
) -> tuple[Tensor, Tensor]:
    """Suppress overlapping boxes of the same group, and keep the best.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,); 0 for what does not count.
        groups: (N,), class or level of each.
        nms: Config of the NMS, type ``nms``.
        max_num: How many to keep; -1 keeps all.

    Returns:
        Scores (K,), best first and 0 from where nothing is left, and indices (K,) of
        the candidates; K is ``max_num`` or N, whichever is less.

    Raises:
        ValueError: If the config asks for another kind of NMS, see :func:`check_nms`.
    """
    check_nms(nms, 'nms')
    if not nms.get('class_agnostic', False):
        # groups far apart do not overlap
        boxes = boxes + groups.to(boxes)[:, None] * (boxes.max() + 1)
    kept = torch.ops.torchvision.nms(boxes, scores, nms['iou_threshold'])
    survives = torch.zeros_like(scores).index_fill(0, kept, 1.0)
    number = len(scores) if max_num < 0 else min(max_num, len(scores))
    top, indices = torch.topk(scores * survives, number)
    return top, indices


def check_nms(nms: dict[str, Any], key: str) -> None:
    """Check that :func:`best` does what a config of an NMS says.

    Args:
        nms: The config.
        key: Where it stands, for messages.

    Raises:
        ValueError: If it does not.
    """
    kind = nms.get('type', 'nms')
    if kind != 'nms':
        raise ValueError(f'{key}.type={kind!r} has no fixed shapes; choose nms')
    for name, value in nms.items():
        if name not in _KNOWN and value not in (0, None):
            raise ValueError(
                f'{key}.{name}={value!r} has no fixed shapes; leave it out, of '
                f'{", ".join(_KNOWN)} any do'
            )


def filter_scores_and_topk(
    scores: Tensor, score_thr: float, topk: int, results: Any = None
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Stands in for the function of this name in ``mmdet.models.utils``.

    Args:
        scores: (N, C).
        score_thr: Scores up to it become 0.
        topk: How many pairs of place and class to keep; at most 0 keeps all.
        results: Dict, list or tensor of what belongs to the N places.

    Returns:
        Scores, labels and indices of the places, (K,) each, and ``results`` at them.
    """
    num_classes = scores.shape[1]
    flat = above(scores.reshape(-1), score_thr)
    number = len(flat) if topk <= 0 else min(topk, len(flat))
    top, indices = torch.topk(flat, number)
    keep = torch.div(indices, num_classes, rounding_mode='floor')
    if isinstance(results, dict):
        results = {name: value[keep] for name, value in results.items()}
    elif isinstance(results, list):
        results = [value[keep] for value in results]
    elif results is not None:
        results = results[keep]
    return top, indices % num_classes, keep, results


def multiclass_nms(
    multi_bboxes: Tensor,
    multi_scores: Tensor,
    score_thr: float,
    nms_cfg: dict[str, Any],
    max_num: int = -1,
    box_dim: int = 4,
    max_candidates: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Stands in for the function of this name in ``mmdet.models.layers``.

    Only the best pairs of box and class reach the NMS, whose time grows with their
    square. Boxes of zeros come from proposals that do not count.

    Args:
        multi_bboxes: (N, 4) or (N, 4 C).
        multi_scores: (N, C + 1), the background last.
        score_thr: Scores up to it become 0.
        nms_cfg: Config of the NMS.
        max_num: How many to keep; -1 keeps all that reached the NMS.
        box_dim: Numbers of a box, 4.
        max_candidates: How many reach the NMS; None for :data:`MAX_CANDIDATES`, or
            :data:`MANY_CANDIDATES` if ``score_thr`` is below 0.01.

    Returns:
        Boxes with scores (K, 5), and labels (K,).
    """
    number, num_classes = multi_scores.shape[0], multi_scores.shape[1] - 1
    boxes = multi_bboxes.view(number, -1, box_dim).expand(number, num_classes, box_dim)
    scores = above(multi_scores[:, :-1], score_thr)
    scores = torch.where((boxes != 0).any(dim=2), scores, torch.zeros_like(scores))
    most = max_candidates or (MANY_CANDIDATES if score_thr < _LOW else MAX_CANDIDATES)
    scores, indices = torch.topk(scores.reshape(-1), min(most, number * num_classes))
    boxes, labels = boxes.reshape(-1, box_dim)[indices], indices % num_classes
    scores, indices = best(boxes, scores, labels, nms_cfg, max_num)
    return torch.cat([boxes[indices], scores[:, None]], dim=1), labels[indices]


def best_of_head(results: InstanceData, cfg: Any) -> tuple[Tensor, Tensor]:
    """Suppress and keep as ``BaseDenseHead._bbox_post_process`` does.

    Args:
        results: Candidates with ``bboxes``, ``scores``, ``labels`` (of an RPN,
            ``level_ids``) and perhaps ``score_factors``.
        cfg: The head's ``test_cfg``.

    Returns:
        As :func:`best`.
    """
    scores = results.scores
    if 'score_factors' in results:
        scores = scores * results.score_factors
    smallest = cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        sides = results.bboxes[:, 2:] - results.bboxes[:, :2]
        large = (sides > smallest).all(dim=1)
        scores = torch.where(large, scores, torch.zeros_like(scores))
    groups = results.level_ids if 'level_ids' in results else results.labels
    return best(results.bboxes, scores, groups, cfg.nms, cfg.max_per_img)


def above(scores: Tensor, threshold: float) -> Tensor:
    """Scores, those up to a threshold as 0."""
    return torch.where(scores > threshold, scores, torch.zeros_like(scores))
