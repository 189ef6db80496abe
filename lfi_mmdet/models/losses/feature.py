"""What was seen: the classical teacher-feature term, optional in LFI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionSpec

from .base import InteractionLoss, InteractionPair, masked_mean


@MODELS.register_module()
class InteractionFeatureLoss(InteractionLoss):
    """L_feat of DESIGN section 2: ``1 - cos(proj Q, V)`` over present texts.

    The projection is used in training only; it is saved as ``distiller.*``.

    Args:
        loss_weight: Factor on the loss.
    """

    uses_queries = True
    needs_features = True

    def connect(self, student: InteractionSpec, feature_dims: int | None) -> None:
        """Build the projection from query to feature width."""
        assert feature_dims is not None, 'checked by the distiller'
        self.proj = nn.Linear(student.embed_dims, feature_dims)

    def forward(self, pairs: list[InteractionPair], present: Tensor) -> Tensor:
        """See :meth:`InteractionLoss.forward`."""
        losses = []
        for pair in pairs:
            assert pair.features is not None, 'checked when the detector was built'
            cosine = F.cosine_similarity(self.proj(pair.queries), pair.features, dim=-1)
            losses.append(masked_mean(1 - cosine, present))
        return self.loss_weight * torch.stack(losses).mean()
