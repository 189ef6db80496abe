"""How concepts relate: the divergence of cosine Gram matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .attention import map_divergence
from .base import InteractionLoss, InteractionPair, masked_mean, off_diagonal


def cosines(vectors: Tensor) -> Tensor:
    """Cosine Gram matrices (..., P, P) of (..., P, C)."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.transpose(-1, -2)


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
    takes_relations = True

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.1) -> None:
        super().__init__(loss_weight)
        if temperature <= 0:
            raise ValueError(f'temperature={temperature} is not positive')
        self.temperature = temperature

    def _log_relations(self, cosines: Tensor, related: Tensor) -> Tensor:
        # finite, so that rows without any relation stay free of NaN
        scaled = (cosines / self.temperature).masked_fill(~related, -1e4)
        return scaled.log_softmax(-1)

    def forward(self, pairs: list[InteractionPair], present: Tensor) -> Tensor:
        """See :meth:`InteractionLoss.forward`."""
        related = off_diagonal(present)
        rows = related.any(-1)
        losses = []
        for pair in pairs:
            taught = pair.relations
            if taught is None:
                assert pair.features is not None, 'checked when the detector was built'
                taught = cosines(pair.features)
            target = self._log_relations(taught, related).exp()
            student = self._log_relations(cosines(pair.queries), related)
            losses.append(masked_mean(map_divergence(student, target), rows))
        return self.loss_weight * torch.stack(losses).mean()
