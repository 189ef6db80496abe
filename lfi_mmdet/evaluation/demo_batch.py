"""A random batch, and the same work in the heads of every detector that sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import SampleList
from mmdet.testing import demo_mm_inputs
from torch import nn

#: Objects in an image and their classes; COCO's paper counts 7.7 of 3.5
NUM_BOXES, NUM_LABELS = 7, 3


def demo_data(
    num_classes: int,
    shape: tuple[int, int],
    batch_size: int = 1,
    num_boxes: int = NUM_BOXES,
    num_labels: int = NUM_LABELS,
) -> dict[str, Any]:
    """Random images with random boxes and masks, as a data loader hands them on.

    Args:
        num_classes: Classes that labels are drawn from.
        shape: (height, width) of the images in pixels.
        batch_size: Images.
        num_boxes: Objects in each image.
        num_labels: Different classes in each image, if there are as many.

    Returns:
        For a data preprocessor; the same for the same arguments.
    """
    data = demo_mm_inputs(
        batch_size=batch_size,
        image_shapes=(3, *shape),
        num_items=[num_boxes] * batch_size,
        num_classes=2,
        with_mask=True,
    )
    draw = torch.Generator().manual_seed(0)
    for sample in data['data_samples']:
        drawn = torch.randperm(num_classes, generator=draw)[:num_labels]
        sample.gt_instances.labels = drawn[torch.arange(num_boxes) % len(drawn)]
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return data


def num_classes(model: BaseDetector) -> int:
    """Number of classes of a one- or two-stage detector.

    Raises:
        TypeError: If its heads do not tell.
    """
    head: Any = getattr(getattr(model, 'roi_head', model), 'bbox_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    if not hasattr(head, 'num_classes'):
        raise TypeError(
            f'cannot tell the number of classes of a {type(model).__name__}'
        )
    return int(head.num_classes)


@contextmanager
def full_proposals(model: BaseDetector, positives: int = 0) -> Iterator[None]:
    """Let the RPN hand on as many proposals as it may, whatever its weights.

    The work of the RoI heads grows with the number of proposals that survive the
    suppression, so without this an untrained detector would look cheaper or dearer
    than another by chance. Holds in training and testing; detectors without an RPN
    are left alone.

    Args:
        model: The detector.
        positives: In training, so many proposals of each image lie on its objects, as
            those of a trained RPN do. Of one with random weights hardly any does, and
            the mask head has only the ground truth to learn from.
    """
    rpn: Any = getattr(model, 'rpn_head', None)
    if rpn is None:
        yield
        return
    training = (getattr(model, 'train_cfg', None) or {}).get('rpn_proposal')
    configs = [config for config in (rpn.test_cfg, training) if config]
    thresholds = [config.nms.iou_threshold for config in configs]
    propose = rpn.loss_and_predict

    def with_positives(x: Any, data_samples: SampleList, *args: Any, **kw: Any) -> Any:
        losses, proposals = propose(x, data_samples, *args, **kw)
        for found, sample in zip(proposals, data_samples):
            boxes = _near(sample.gt_instances.bboxes, min(positives, len(found)))
            found.bboxes[len(found) - len(boxes) :] = boxes
        return losses, proposals

    try:
        for config in configs:
            config.nms.iou_threshold = 1.0
        if positives:
            rpn.loss_and_predict = with_positives
        yield
    finally:
        vars(rpn).pop('loss_and_predict', None)
        for config, threshold in zip(configs, thresholds):
            config.nms.iou_threshold = threshold


def _near(boxes: Any, count: int) -> torch.Tensor:
    """So many boxes inside of ground-truth boxes, which they cover by 0.8 or more."""
    draw = torch.Generator().manual_seed(0)
    inwards = 0.05 * torch.rand(count, 4, generator=draw).to(boxes.device)
    boxes = getattr(boxes, 'tensor', boxes)
    chosen = boxes[torch.arange(count, device=boxes.device) % len(boxes)]
    sides = (chosen[:, 2:] - chosen[:, :2]).repeat(1, 2)
    return chosen + inwards * sides * inwards.new_tensor([1, 1, -1, -1])


@contextmanager
def head_work(model: BaseDetector) -> Iterator[dict[str, int]]:
    """Count the regions that the RoI heads see.

    Yields:
        ``boxes`` (in training, the sampled ones) and ``masks`` (in training, the
        positive ones), both summed up as the model runs; empty for a detector without
        such heads.
    """
    seen: dict[str, int] = {}
    handles = []
    roi_head = getattr(model, 'roi_head', None)
    for name, part in (('boxes', 'bbox_head'), ('masks', 'mask_head')):
        head = getattr(roi_head, part, None)
        if head is None:
            continue

        def count(module: nn.Module, args: tuple, name: str = name) -> None:
            seen[name] = seen.get(name, 0) + len(args[0])

        heads = head if isinstance(head, nn.ModuleList) else [head]
        handles += [inner.register_forward_pre_hook(count) for inner in heads]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
