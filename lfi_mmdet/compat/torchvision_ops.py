"""The ops of ``mmcv._ext`` that common detectors need, through torchvision.

They keep the calling conventions of mmcv's compiled functions: results go into the
tensors handed in, and autograd happens in mmcv's own ``Function`` classes. float16 and
bfloat16 are computed in float32, as torchvision does under autocast: its CPU kernels
know neither, and box coordinates lose whole pixels in them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# registers torch.ops.torchvision.*
import torchvision  # noqa: F401
from torch import Tensor

_MAX_POOLING = 0
_LINEAR, _GAUSSIAN = 1, 2  # methods of Soft-NMS; 0 is naive


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Keep boxes that overlap no better-scored one by more than the threshold.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: Boxes of a larger IoU are suppressed.
        offset: 0 or 1; the width of a box is x2 - x1 + offset.

    Returns:
        Indices of the kept boxes, best score first; of equal scores the first.
    """
    boxes, scores = _at_least_float32(boxes, scores)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def _ious(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """IoU of one box (4,) with each of (N, 4); 0 where both are empty."""
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    area = (box[2:] - box[:2] + offset).prod()
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    inter = (sides + offset).clamp(min=0).prod(1)
    return (inter / (area + areas - inter)).nan_to_num(nan=0.0)


@torch.no_grad()
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes instead of dropping them (Soft-NMS).

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        dets: (N, 5), receives box and lowered score of each kept box in its first
            rows; the others are left as they are.
        iou_threshold: From this IoU on, methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: Boxes whose score was lowered below it are dropped.
        method: 0 drops ("naive"), 1 multiplies by 1 - IoU ("linear"), 2 by
            exp(-IoU^2 / sigma) ("gaussian").
        offset: 0 or 1; the width of a box is x2 - x1 + offset.

    Returns:
        Indices of the kept boxes in the order of ``dets``.
    """
    boxes, scores = _at_least_float32(boxes, scores)
    scores = scores.clone()
    indices = torch.arange(len(boxes), device=boxes.device)
    kept: list[Tensor] = []
    while len(boxes):
        best = int(scores.argmax())
        dets[len(kept), :4] = boxes[best]
        dets[len(kept), 4] = scores[best]
        kept.append(indices[best])
        ious = _ious(boxes[best], boxes, offset)
        if method == _GAUSSIAN:
            weights = torch.exp(-(ious**2) / sigma)
        else:
            lowered = 1 - ious if method == _LINEAR else torch.zeros_like(ious)
            weights = torch.where(ious >= iou_threshold, lowered, 1.0)
        scores = scores * weights
        stay = scores >= min_score
        stay[best] = False
        boxes, scores, indices = boxes[stay], scores[stay], indices[stay]
    return torch.stack(kept) if kept else indices


@torch.no_grad()
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes by the better-scored box that suppresses them.

    Args:
        dets: (N, 5) as x1, y1, x2, y2, score.
        iou_threshold: Boxes of at least this IoU join a group.

    Returns:
        The indices of each group, best score first.
    """
    (dets,) = _at_least_float32(dets)
    left = dets[:, 4].argsort(descending=True, stable=True)
    groups: list[list[int]] = []
    while len(left):
        best, left = left[0], left[1:]
        joins = _ious(dets[best, :4], dets[left, :4], offset=0) >= iou_threshold
        groups.append([int(best), *left[joins].tolist()])
        left = left[~joins]
    return groups


def _refuse_max_pooling(pool_mode: int) -> None:
    if pool_mode == _MAX_POOLING:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' needs the compiled ops of the full mmcv "
            "(`pip install mmcv`); torchvision has pool_mode='avg' only"
        )


@torch.no_grad()
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average the features in each bin of each region.

    Args:
        input: (B, C, H, W).
        rois: (N, 5) as image index, x1, y1, x2, y2 in pixels of the image.
        output: (N, C, aligned_height, aligned_width), receives the result.
        argmax_y: Of max pooling, not used.
        argmax_x: Of max pooling, not used.
        aligned_height: Bins of a region from top to bottom.
        aligned_width: Bins of a region from left to right.
        spatial_scale: Size of the features over size of the image.
        sampling_ratio: Samples of a bin along each side; 0 for one per feature cell.
        pool_mode: 1 for average; 0, maximum, is refused.
        aligned: Whether the centre of the first cell, not its corner, is at 0.5.
    """
    _refuse_max_pooling(pool_mode)
    features, regions = _at_least_float32(input, rois)
    output.copy_(
        torch.ops.torchvision.roi_align(
            features,
            regions,
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


@torch.no_grad()
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``.

    ``grad_output`` has the shape of its output and ``grad_input`` that of its input;
    the other arguments are those of the forward pass.
    """
    _refuse_max_pooling(pool_mode)
    grads, regions = _at_least_float32(grad_output, rois)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            grads,
            regions,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


@torch.no_grad()
def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss of every logit.

    Args:
        input: Logits (N, C).
        target: Class (N,) in 0..C, where C is the background.
        weight: (C,), one weight per target class, or empty for none.
        output: (N, C), receives the losses.
        gamma: Exponent of the focusing factor.
        alpha: Weight of the positive logits; the negative ones get 1 - alpha.
    """
    (logits,) = _at_least_float32(input)
    log_p, log_q = _log_sigmoids(logits)
    losses = torch.where(
        _is_target(logits, target),
        -alpha * log_q.exp() ** gamma * log_p,
        -(1 - alpha) * log_p.exp() ** gamma * log_q,
    )
    output.copy_(_weighted(losses, target, weight))


@torch.no_grad()
def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of every loss by its own logit, into ``grad_input`` (N, C).

    The other arguments are those of :func:`sigmoid_focal_loss_forward`.
    """
    (logits,) = _at_least_float32(input)
    log_p, log_q = _log_sigmoids(logits)
    p, q = log_p.exp(), log_q.exp()
    grads = torch.where(
        _is_target(logits, target),
        -alpha * q**gamma * (q - gamma * p * log_p),
        -(1 - alpha) * p**gamma * (gamma * q * log_q - p),
    )
    grad_input.copy_(_weighted(grads, target, weight))


def _log_sigmoids(logits: Tensor) -> tuple[Tensor, Tensor]:
    log_sigmoid = torch.nn.functional.logsigmoid
    return log_sigmoid(logits), log_sigmoid(-logits)


def _is_target(logits: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _weighted(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return values * weight[target, None] if weight.numel() else values


def get_compiler_version() -> str:
    """What mmcv's environment report prints."""
    return 'none (ops by torchvision)'


def get_compiling_cuda_version() -> str:
    """What mmcv's environment report prints."""
    return torch.version.cuda or 'not available'


OPS: dict[str, Callable] = {
    op.__name__: op
    for op in (
        nms,
        softnms,
        nms_match,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}
