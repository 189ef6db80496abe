"""RKD: distances and angles between embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .base import DenseLoss, DensePair, places

#: Below the square of any distance that matters; roots have no gradient at 0
_TINY = 1e-12
#: Embeddings nearer than this share of the mean distance lie in no clear direction
_NEAR = 0.1
#: The mean distance counts as no smaller than this share of an embedding's length
_ALIKE = 1e-2


@MODELS.register_module()
class RKDLoss(DenseLoss):
    """Relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068).

    With embeddings x_i of the images of a batch and the Huber loss l (delta = 1)::

        psi_D(i, j) = |x_i - x_j| / mean over pairs of |x - x'|
        psi_A(i, j, k) = cos of the angle at x_j between x_i and x_k
        L = distance_weight * mean_ij  l(psi_D of teacher, psi_D of student)
          + angle_weight    * mean_ijk l(psi_A of teacher, psi_A of student)

    The paper's embedding is that of a whole image; batches of detection are small, so
    here it is the mean of the tokens in each of ``cells`` x ``cells`` parts of the
    padded batch. Parts without an unpadded place do not count. The paper sums over
    pairs and triplets; we take means over those of different embeddings, so that the
    weights do not depend on the size of the batch. The gradient of an angle grows
    without bound as two embeddings meet, e.g. of two parts of one background; so in
    both networks the cosine fades out below a tenth of the mean distance. The cost
    grows with the cube of ``batch size * cells ** 2``.

    Args:
        loss_weight: Factor on both parts.
        distance_weight: Of the distances; 25 in the paper.
        angle_weight: Of the angles; 50 in the paper.
        cells: Rows and columns of parts of an image; 1 for the image as a whole.
        whiten: See :class:`DenseLoss`.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        cells: int = 2,
        whiten: bool = False,
    ) -> None:
        super().__init__(loss_weight, whiten)
        if cells < 1:
            raise ValueError(f'RKDLoss.cells={cells} must be at least 1')
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.cells = cells

    def _embeddings(self, features: Tensor, share: Tensor) -> Tensor:
        """Mean of the unpadded tokens of each part, (B * cells^2, C)."""
        pooled = F.adaptive_avg_pool2d(features, self.cells)
        return places(pooled / share.clamp(min=_TINY)).flatten(0, 1)

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`."""
        valid = pair.valid[:, None].to(pair.student.dtype)
        share = F.adaptive_avg_pool2d(valid, self.cells)
        student = self._embeddings(pair.student, share)
        teacher = self._embeddings(self.target(pair).detach() * valid, share)
        there = places(share).flatten() > 0
        two = (
            there[:, None] & there & ~torch.eye(len(there), device=there.device).bool()
        )
        three = two[:, :, None] & two[:, None, :] & two[None]
        distances, units = relations(student, two)
        taught, taught_units = relations(teacher, two)
        loss = self.distance_weight * huber(distances, taught, two)
        if self.angle_weight:
            angles, taught = units @ units.mT, taught_units @ taught_units.mT
            loss = loss + self.angle_weight * huber(angles, taught, three)
        return self.loss_weight * loss


def relations(embeddings: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Distances between embeddings and the directions they lie in.

    Args:
        embeddings: (n, C).
        pairs: Bool (n, n), the pairs whose mean distance is the unit.

    Returns:
        Distances (n, n) in that unit, and unit vectors (n, n, C) from the first to the
        second, shorter ones of pairs that are very near; the product of those of one
        embedding are the cosines of angles at it.
    """
    steps = embeddings[None] - embeddings[:, None]
    distances = steps.square().sum(-1).clamp(min=_TINY).sqrt()
    unit = (distances * pairs).sum() / pairs.sum().clamp(min=1)
    # both divisors are kept from 0, or the gradients would have no bound
    length = embeddings.detach().square().sum(-1).mean().sqrt()
    unit = torch.maximum(unit, (_ALIKE * length).clamp(min=_TINY**0.5))
    apart = torch.maximum(distances, _NEAR * unit.detach())
    return distances / unit, steps / apart[..., None]


def huber(student: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
    """Mean of the Huber loss (delta 1) where the bool ``counts`` holds, or 0."""
    loss = F.smooth_l1_loss(student, teacher, reduction='none')
    return (loss * counts).sum() / counts.sum().clamp(min=1)
