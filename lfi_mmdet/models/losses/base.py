"""What the LFI losses have in common."""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from dataclasses import dataclass

import torch
from mmengine.model import BaseModule
from torch import Tensor

from lfi_mmdet.structures import InteractionSpec


@dataclass
class InteractionPair:
    """One supervised student layer beside its teacher layer, on one grid.

    All have the same P rows per image: all queries, or those whose texts are present.

    Attributes:
        log_attention: Log of the student's map per query, heads averaged, (B, P, N);
            a large negative number on padding.
        target: Teacher's map per text, (B, P, N); rows of present texts sum to 1 and
            are 0 on padding.
        queries: Student queries after this layer, (B, P, d).
        features: Teacher's text-conditioned features, (B, P, C), or None.
        relations: Their cosines, (B, P, P), where the features are not at hand.
        logits: What the student's maps are made of, (B, h, P, N).
        log_mass: What the teacher's maps summed to, see
            :class:`~lfi_mmdet.structures.InteractionTargets`, (B, P); or None.
        valid: Bool (B, N), False on padding; None if nothing is padded.
    """

    log_attention: Tensor
    target: Tensor
    queries: Tensor
    features: Tensor | None = None
    relations: Tensor | None = None
    logits: Tensor | None = None
    log_mass: Tensor | None = None
    valid: Tensor | None = None

    def log_texts(self, absent: Tensor) -> Tensor:
        """Log of the student's share of each text at a place, heads averaged.

        Args:
            absent: Bool (B, P, 1), rows that are left out.

        Returns:
            (B, P, N), at least float32; over P the shares sum to 1.
        """
        assert self.logits is not None, 'given by InteractionDistiller'
        logits = (
            self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        )
        logits = logits.masked_fill(absent[:, None], -1e4)
        return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])


class InteractionLoss(BaseModule, metaclass=ABCMeta):
    """Base of the LFI losses.

    Args:
        loss_weight: Factor on the loss.

    Attributes:
        uses_maps: Whether gradients flow into the attention maps directly.
        uses_queries: The same for the queries.
        needs_features: Whether the teacher must have features.
        takes_relations: Whether cosines between features do as well.
        needs_mass: Whether the teacher must tell the mass of its maps.
        min_layers: Supervised layers it takes at least.
    """

    uses_maps = False
    uses_queries = False
    needs_features = False
    takes_relations = False
    needs_mass = False
    min_layers = 1

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def connect(self, student: InteractionSpec, feature_dims: int | None) -> None:
        """Learn the widths of both sides; called once, when the detector is built."""

    @abstractmethod
    def forward(self, pairs: list[InteractionPair], present: Tensor) -> Tensor:
        """Compute the weighted loss.

        Args:
            pairs: Supervised layers in ascending order.
            present: Bool (B, P); rows of absent texts are weighted out.

        Returns:
            Scalar; 0, but part of the graph, if no text is present.
        """


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``values`` where the bool ``weight`` of the same shape holds, or 0."""
    total = values.masked_fill(~weight, 0).sum()
    return total / weight.sum().clamp(min=1)


def off_diagonal(present: Tensor) -> Tensor:
    """Pairs of two different present texts, bool (B, P, P), from (B, P)."""
    both = present[:, :, None] & present[:, None, :]
    return both & ~torch.eye(present.shape[1], dtype=torch.bool, device=both.device)
