"""What is looked at: the divergence of the attention maps."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor

from .base import InteractionLoss, InteractionPair, masked_mean


def map_divergence(log_attention: Tensor, target: Tensor) -> Tensor:
    """KL(target || attention) per row, in nats.

    Args:
        log_attention: Log probabilities, (..., N).
        target: Probabilities, (..., N).

    Returns:
        (...).
    """
    return (torch.xlogy(target, target) - target * log_attention).sum(-1)


@MODELS.register_module()
class InteractionAttentionLoss(InteractionLoss):
    """L_attn of DESIGN section 2: mean over layers and present texts of KL(P || A).

    Args:
        loss_weight: Factor on the loss.
    """

    uses_maps = True

    def forward(self, pairs: list[InteractionPair], present: Tensor) -> Tensor:
        """See :meth:`InteractionLoss.forward`."""
        losses = [
            masked_mean(map_divergence(pair.log_attention, pair.target), present)
            for pair in pairs
        ]
        return self.loss_weight * torch.stack(losses).mean()
