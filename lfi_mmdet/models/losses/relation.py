"""How concepts relate: the divergence of cosine Gram matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .attention import map_divergence
from .base import InteractionLoss, InteractionPair, masked_mean, off_diagonal


@MODELS.register_module()
class InteractionRelationLoss(InteractionLoss):
    """L_rel of DESIGN section 2.

    KL between the row-wise softmax of the cosine Gram matrices of the teacher's
    text-conditioned features V and of the student's queries Q. Only pairs of different
    texts that are both present count: a text's likeness to itself is always 1 and
    would drown the rest.

    Args:
        loss_weight: Factor on the loss.
        temperature: Divides the cosines before the softmax.
    """

    uses_queries = True
    needs_features = True

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.1) -> None:
        super().__init__(loss_weight)
        if temperature <= 0:
            raise ValueError(f'temperature={temperature} is not positive')
        self.temperature = temperature

    def _log_relations(self, vectors: Tensor, related: Tensor) -> Tensor:
        unit = F.normalize(vectors, dim=-1)
        cosines = unit @ unit.transpose(1, 2) / self.temperature
        # finite, so that rows without any relation stay free of NaN
        return cosines.masked_fill(~related, -1e4).log_softmax(-1)

    def forward(self, pairs: list[InteractionPair], present: Tensor) -> Tensor:
        """See :meth:`InteractionLoss.forward`."""
        related = off_diagonal(present)
        rows = related.any(-1)
        losses = []
        for pair in pairs:
            assert pair.features is not None, 'checked when the detector was built'
            target = self._log_relations(pair.features, related).exp()
            student = self._log_relations(pair.queries, related)
            losses.append(masked_mean(map_divergence(student, target), rows))
        return self.loss_weight * torch.stack(losses).mean()
