"""How looking develops: the change of the maps from layer to layer."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor

from .base import InteractionLoss, InteractionPair, masked_mean


@MODELS.register_module()
class InteractionDynamicsLoss(InteractionLoss):
    """L_dyn of DESIGN section 2.

    Mean absolute difference between ``log A_{l+1} - log A_l`` and
    ``log P_{m+1} - log P_m``. Positions are weighted by where the teacher looks in
    either layer, since elsewhere logarithms of next to nothing would decide; all maps
    are mixed with a little uniform attention, which bounds the logarithms.

    Args:
        loss_weight: Factor on the loss.
        smoothing: Share of the uniform map in the mixture.
    """

    uses_maps = True
    min_layers = 2

    def __init__(self, loss_weight: float = 1.0, smoothing: float = 0.01) -> None:
        super().__init__(loss_weight)
        if not 0 < smoothing < 1:
            raise ValueError(f'smoothing={smoothing} is not between 0 and 1')
        self.smoothing = smoothing

    def _log_mixture(self, attention: Tensor) -> Tensor:
        uniform = self.smoothing / attention.shape[-1]
        return ((1 - self.smoothing) * attention + uniform).log()

    def forward(self, pairs: list[InteractionPair], present: Tensor) -> Tensor:
        """See :meth:`InteractionLoss.forward`."""
        losses = []
        for early, late in zip(pairs, pairs[1:]):
            student = self._log_mixture(late.log_attention.exp()) - self._log_mixture(
                early.log_attention.exp()
            )
            teacher = self._log_mixture(late.target) - self._log_mixture(early.target)
            weight = (early.target + late.target) / 2
            difference = (weight * (student - teacher).abs()).sum(-1)
            losses.append(masked_mean(difference, present))
        return self.loss_weight * torch.stack(losses).mean()
