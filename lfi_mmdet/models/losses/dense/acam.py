"""ACAM-KD: masks that student and teacher choose together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .base import DenseLoss, DensePair, aligner, places


@MODELS.register_module()
class ACAMLoss(DenseLoss):
    """Adaptive, cooperative attention masking (Lan and Tian, ICCV 2025, 2503.06307).

    The teacher's tokens T ask the student's S (aligned to C channels), and learned
    units select channels and places in what they are answered (N places, M masks)::

        A = softmax(Wq T (Wk S)^T / sqrt(C / 2))      fused F = A Wv S, (N, C)
        channel masks   Mc = sigmoid(mc * mean over places of F)     (M, C)
        spatial masks   Ms = sigmoid(ms F^T)                         (M, N)
        L_c = mean over M of sum Mc * (T - S)^2 / (N * sum of the mask)
        L_s = mean over M of sum Ms * (T - S)^2 / (C * sum of the mask)
        L_div = 2 sum_{i != j} M_i . M_j / (sum_i |M_i|^2 + sum_j |M_j|^2)
        L = alpha * (L_c + L_s) + diversity_weight * (L_div of Mc + L_div of Ms)

    The equations are known to us from summaries of the paper, in which L_c and L_s have
    |M * (T - S)|^2 above the sum of the mask. Masks between 0 and 1 would then be best
    at 0, where the loss is 0 whatever the student does. We take means weighted by the
    mask, which are the same for masks of 0 and 1, and which the size of a mask does not
    change. The paper works on FPNs, we on the output of the backbone, with whitened
    tokens (see :class:`DenseLoss`).

    Args:
        loss_weight: alpha, 1 in the paper.
        diversity_weight: Called lambda in the paper, 1.
        num_masks: M, 6 for detection in the paper.
        whiten: See :class:`DenseLoss`.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        diversity_weight: float = 1.0,
        num_masks: int = 6,
        whiten: bool = True,
    ) -> None:
        super().__init__(loss_weight, whiten)
        if num_masks < 2:
            raise ValueError(
                f'ACAMLoss.num_masks={num_masks} must be at least 2: one mask cannot '
                'differ from others'
            )
        self.diversity_weight, self.num_masks = diversity_weight, num_masks

    def connect(self, student_dims: int, teacher_dims: int) -> None:
        """Build projections and selection units."""
        narrow = max(1, teacher_dims // 2)
        self.align = aligner(student_dims, teacher_dims)
        self.query = nn.Linear(teacher_dims, narrow, bias=False)
        self.key = nn.Linear(teacher_dims, narrow, bias=False)
        self.value = nn.Linear(teacher_dims, teacher_dims, bias=False)
        # different from one another from the start, as they learn by their differences
        self.channel_units = nn.Parameter(torch.randn(self.num_masks, 1))
        self.spatial_units = nn.Parameter(
            torch.randn(self.num_masks, teacher_dims) * teacher_dims**-0.5
        )

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`."""
        valid = pair.valid.flatten(1)
        student, teacher = places(self.align(pair.student)), places(self.target(pair))
        count = valid.sum(1).clamp(min=1)[:, None]
        channel, spatial = self.mask_logits(self.fuse(student, teacher, valid), valid)
        # one product instead of M masked copies of the differences
        squares = (student - teacher).square() * valid[..., None]
        per_channel = shares(channel) @ (squares.sum(1) / count)[..., None]
        per_place = shares(spatial) @ squares.mean(2)[..., None]
        loss = self.loss_weight * (per_channel.mean() + per_place.mean())
        alike = diversity(channel.sigmoid()) + diversity(spatial.sigmoid())
        return loss + self.diversity_weight * alike

    def fuse(self, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        """What the teacher's tokens find in the student's.

        Args:
            student: (B, N, C).
            teacher: (B, N, C).
            valid: Bool (B, N).

        Returns:
            (B, N, C).
        """
        query, key = self.query(teacher), self.key(student)
        logits = query @ key.mT / query.shape[-1] ** 0.5
        attention = logits.masked_fill(~valid[:, None], -1e4).softmax(-1)
        return attention @ self.value(student)

    def mask_logits(self, fused: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The masks that the units select, before the sigmoid.

        Args:
            fused: See :meth:`fuse`.
            valid: Bool (B, N).

        Returns:
            (B, M, C) and (B, M, N), of masks of channels and of places; the latter
            are 0 on padding.
        """
        count = valid.sum(1).clamp(min=1)[:, None]
        pooled = (fused * valid[..., None]).sum(1) / count
        spatial = (self.spatial_units @ fused.mT).masked_fill(~valid[:, None], -1e4)
        return self.channel_units * pooled[:, None], spatial


def shares(logits: Tensor) -> Tensor:
    """What each entry has of the sum of its mask, ``m / m.sum(-1)``.

    Args:
        logits: Of the masks, (B, M, K).

    Returns:
        (B, M, K), with a sum of 1 over K however close to 0 the mask is.
    """
    return F.logsigmoid(logits).softmax(-1)


def diversity(masks: Tensor) -> Tensor:
    """How much masks overlap (Dice), from 0 for none to M - 1 for equal masks.

    Args:
        masks: (B, M, K).

    Returns:
        Scalar, mean over the images.
    """
    products = masks @ masks.mT
    own = products.diagonal(dim1=1, dim2=2).sum(-1)
    others = products.sum((1, 2)) - own
    # the floor is for images that are all padding; small masks must stay above it
    return (others / own.clamp(min=1e-20)).mean()
