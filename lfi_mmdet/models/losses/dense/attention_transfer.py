"""AT: where features are strong."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .base import DenseLoss, DensePair


@MODELS.register_module()
class AttentionTransferLoss(DenseLoss):
    """Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928).

    The attention of an image is the sum of squares over channels at each place, as a
    vector q over its places::

        L = beta / 2 * mean over places of (q_S / |q_S| - q_T / |q_T|)^2

    The paper writes the norm of the difference, and sets beta to 1000 divided by the
    number of places and of images; with squares, as its experiments have it, that is
    this mean with beta = 1000. No convolution is needed. Whitened tokens would all be
    equally strong, so there is no such choice.

    Args:
        loss_weight: beta, 1000 in the paper.
    """

    def __init__(self, loss_weight: float = 1000.0) -> None:
        super().__init__(loss_weight)

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`."""
        # padding is 0 on both sides and adds nothing to a norm
        student = F.normalize(pair.student.square().sum(1).flatten(1), dim=1)
        teacher = F.normalize(pair.teacher.square().sum(1).flatten(1), dim=1)
        count = pair.valid.flatten(1).sum(1).clamp(min=1)
        error = (student - teacher).square().sum(1) / count
        return self.loss_weight / 2 * error.mean()
