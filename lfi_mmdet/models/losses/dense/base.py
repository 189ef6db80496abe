"""What the losses on dense features have in common."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn


@dataclass
class DensePair:
    """Student and teacher on the student's grid; both become 0 on padding.

    Attributes:
        student: What the backbone returned, (B, d, H, W), at least float32.
        teacher: The teacher's tokens, (B, C, H, W), likewise.
        valid: Bool (B, H, W), False on padding.
        class_embeds: Unit vectors of the classes in the space of the teacher's tokens,
            (T, C), for losses that need them.
        boxes: Regions (R, 5), for losses that need them: the image, then x1, y1, x2,
            y2 in patches of the grid.
        logits: What the student takes the regions for, (R, classes + 1), background
            last.
    """

    student: Tensor
    teacher: Tensor
    valid: Tensor
    class_embeds: Tensor | None = None
    boxes: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        padding = ~self.valid[:, None]
        self.student = self.student.masked_fill(padding, 0)
        self.teacher = self.teacher.masked_fill(padding, 0)


class DenseLoss(BaseModule, metaclass=ABCMeta):
    """Base of the losses on dense features.

    Args:
        loss_weight: Factor on the loss.
        whiten: Normalise the teacher's token at each place to mean 0 and variance 1
            over its channels. The papers have convolutional features behind a batch
            norm or an FPN; what comes out of a transformer's block has no such scale,
            and a few of its channels are often a hundred times the others.

    Attributes:
        needs_regions: Whether it looks at regions.
        needs_classes: Whether it compares tokens with classes, so that tokens must be
            of the joint space.
    """

    needs_regions = False
    needs_classes = False

    def __init__(self, loss_weight: float = 1.0, whiten: bool = False) -> None:
        super().__init__()
        self.loss_weight, self.whiten = loss_weight, whiten

    def connect(self, student_dims: int, teacher_dims: int) -> None:
        """Learn the widths of both sides; called once, when the detector is built."""

    def target(self, pair: DensePair) -> Tensor:
        """The teacher's tokens, whitened if that is asked for, (B, C, H, W)."""
        return whitened(pair.teacher) if self.whiten else pair.teacher

    @abstractmethod
    def forward(self, pair: DensePair) -> Tensor:
        """Compute the weighted loss, a scalar; padded places do not count."""


def whitened(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels of (B, C, H, W), at each place."""
    channels_last = features.permute(0, 2, 3, 1)
    return F.layer_norm(channels_last, channels_last.shape[-1:]).permute(0, 3, 1, 2)


def aligner(student_dims: int, teacher_dims: int) -> nn.Conv2d:
    """The 1x1 convolution that brings a student's channels to a teacher's.

    Most papers leave it out where the widths agree. Here student and teacher are never
    of one family, so that equal widths do not mean that channels have to do with each
    other; it is always there.
    """
    return nn.Conv2d(student_dims, teacher_dims, 1)


def mean_over_places(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid places and the channels.

    Args:
        values: (B, C, H, W).
        valid: Bool (B, H, W).

    Returns:
        Scalar, 0 if nothing is valid.
    """
    total = values.masked_fill(~valid[:, None], 0).sum()
    return total / (valid.sum() * values.shape[1]).clamp(min=1)


def places(features: Tensor) -> Tensor:
    """Tokens in a row, (B, H * W, C), of (B, C, H, W)."""
    return features.flatten(2).transpose(1, 2)
