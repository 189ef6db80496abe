"""MGD: the teacher's features, generated from a part of the student's."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .base import DenseLoss, DensePair, aligner, mean_over_places


@MODELS.register_module()
class MGDLoss(DenseLoss):
    """Masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529).

    Random places of the student's features are put to 0, the same for all channels,
    and a small network has to make all of the teacher's features of the rest::

        M_i = 0 if R_i < mask_ratio else 1,   R_i uniform between 0 and 1
        G(F) = W2(ReLU(W1(F)))                3x3 convolutions
        L = alpha * sum (T - G(M * align(S)))^2

    The paper sums over places and channels, so that its alpha is one for its image
    size: 5e-7 with mask_ratio 0.45 for two-stage detectors, 2e-5 with 0.65 for
    one-stage ones. We take the mean. At 1333 x 800 pixels the 256 channels of its FPN
    hold 23 million numbers from stride 4 on (two-stage) and 5.7 million from stride 8
    on, so a mean of the same weight has about 10 and 115 in front. The default is that
    of two-stage detectors, as ours are. The teacher's tokens are whitened, see
    :class:`DenseLoss`.

    Args:
        loss_weight: Factor on the mean, see above.
        mask_ratio: Share of the places that are put to 0, called lambda in the paper.
        whiten: See :class:`DenseLoss`.
    """

    def __init__(
        self,
        loss_weight: float = 10.0,
        mask_ratio: float = 0.45,
        whiten: bool = True,
    ) -> None:
        super().__init__(loss_weight, whiten)
        if not 0 <= mask_ratio < 1:
            raise ValueError(
                f'MGDLoss.mask_ratio={mask_ratio} must be from 0 to below 1'
            )
        self.mask_ratio = mask_ratio

    def connect(self, student_dims: int, teacher_dims: int) -> None:
        """Build the convolution to the teacher's channels and the generator."""
        self.align = aligner(student_dims, teacher_dims)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_dims, teacher_dims, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_dims, teacher_dims, 3, padding=1),
        )

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`."""
        shown = torch.rand(pair.valid.shape, device=pair.valid.device)
        shown = (shown >= self.mask_ratio) & pair.valid
        first, rectify, second = self.generation
        hidden = rectify(first(self.align(pair.student) * shown[:, None]))
        # 0 as beyond the border of a batch, or padding would reach into the image
        generated = second(hidden * pair.valid[:, None])
        error = (generated - self.target(pair)).square()
        return self.loss_weight * mean_over_places(error, pair.valid)
