"""A random image, and what a detector does with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.testing import demo_mm_inputs
from torch import nn

from .reading import evaluation_mode


class DemoBatch:
    """One random image with random ground truth, for measuring costs.

    Args:
        model: The detector.
        shape: (height, width) of the image in pixels, before padding.
        num_boxes: Objects in the image.

    Attributes:
        proposals: Boxes that the RPN handed on in the last :meth:`forward`; None for
            a detector without one.
    """

    def __init__(
        self, model: BaseDetector, shape: tuple[int, int], num_boxes: int = 10
    ) -> None:
        self.model = model
        self.proposals: int | None = None
        # its labels start at 1, as though 0 were the background
        self.data = demo_mm_inputs(
            batch_size=1,
            image_shapes=(3, *shape),
            num_items=[num_boxes],
            num_classes=num_classes(model) + 1,
            with_mask=True,
        )
        for sample in self.data['data_samples']:
            sample.gt_instances.labels -= 1
            sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
        self.inputs = model.data_preprocessor(self.data, training=False)

    def forward(self) -> None:
        """Run all of the network, without the post-processing of its detections."""
        with evaluation_mode(self.model), full_proposals(self.model) as seen:
            self.model(**self.inputs, mode='tensor')
        self.proposals = seen[-1] if seen else None

    def train_step(self) -> None:
        """Losses and gradients of one step, without the optimizer's update."""
        self.model.train()
        batch = self.model.data_preprocessor(self.data, training=True)
        loss, _ = self.model.parse_losses(self.model(**batch, mode='loss'))
        loss.backward()
        self.model.zero_grad(set_to_none=True)


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
def full_proposals(model: BaseDetector) -> Iterator[list[int]]:
    """Let the RPN hand on as many proposals as it may, whatever its weights.

    The work of the RoI heads grows with the number of proposals that survive the
    suppression, so without this an untrained detector would look cheaper or dearer
    than another by chance. Detectors without an RPN are left alone.

    Yields:
        The numbers of proposals per image, filled as the RPN runs.
    """
    seen: list[int] = []
    rpn: Any = getattr(model, 'rpn_head', None)
    if rpn is None:
        yield seen
        return
    threshold, predict = rpn.test_cfg.nms.iou_threshold, rpn.predict

    def counting(*args: Any, **kwargs: Any) -> Any:
        results = predict(*args, **kwargs)
        seen.extend(len(result) for result in results)
        return results

    rpn.test_cfg.nms.iou_threshold = 1.0
    rpn.predict = counting
    try:
        yield seen
    finally:
        del rpn.predict
        rpn.test_cfg.nms.iou_threshold = threshold
