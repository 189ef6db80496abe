"""CWD: each channel as a distribution over places."""

from __future__ import annotations

from mmdet.registry import MODELS
from torch import Tensor

from .base import DenseLoss, DensePair, aligner


@MODELS.register_module()
class CWDLoss(DenseLoss):
    """Channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256).

    Each channel c becomes a distribution over the places i, and the student's is drawn
    to the teacher's::

        phi(y_c)_i = exp(y_ci / tau) / sum_j exp(y_cj / tau)
        L = tau^2 / C * sum_c sum_i phi(T_c)_i * log(phi(T_c)_i / phi(S_c)_i)

    as a mean over images. A 1x1 convolution brings S to the channels of T.

    Args:
        loss_weight: Factor on the loss; 50 is the paper's for feature maps (3 for
            class logits).
        temperature: tau, 4 in the paper.
        whiten: See :class:`DenseLoss`.
    """

    def __init__(
        self,
        loss_weight: float = 50.0,
        temperature: float = 4.0,
        whiten: bool = False,
    ) -> None:
        super().__init__(loss_weight, whiten)
        if not temperature > 0:
            raise ValueError(f'CWDLoss.temperature={temperature} must be above 0')
        self.temperature = temperature

    def connect(self, student_dims: int, teacher_dims: int) -> None:
        """Build the convolution to the teacher's channels."""
        self.align = aligner(student_dims, teacher_dims)

    def _log_places(self, features: Tensor, valid: Tensor) -> Tensor:
        """Log of a channel's distribution over places, (B, C, H * W)."""
        logits = (features / self.temperature).flatten(2)
        # finite, so that an image that is all padding stays free of NaN
        return logits.masked_fill(~valid.flatten(1)[:, None], -1e4).log_softmax(-1)

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`."""
        student = self._log_places(self.align(pair.student), pair.valid)
        teacher = self._log_places(self.target(pair), pair.valid)
        divergence = (teacher.exp() * (teacher - student)).sum(-1)
        return self.loss_weight * self.temperature**2 * divergence.mean()
