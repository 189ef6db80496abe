"""FitNets: mimicry of features."""

from __future__ import annotations

from mmdet.registry import MODELS
from torch import Tensor

from .base import DenseLoss, DensePair, aligner, mean_over_places


@MODELS.register_module()
class FitNetLoss(DenseLoss):
    """Feature mimicry of FitNets (Romero et al., ICLR 2015, arXiv 1412.6550).

    Equation 3 of the paper, with the student's features S, the teacher's T and a
    regressor r::

        L = 1/2 || T - r(S) ||^2

    Ours differs in three points. It is a mean over places and channels, so that its
    weight does not depend on the size of the image. It is trained along with the task,
    where the paper first trains the hints alone (pre-training, way B, does that). And
    the teacher's tokens are whitened, see :class:`DenseLoss`.

    Args:
        loss_weight: Factor on the loss; the paper has none.
        whiten: See :class:`DenseLoss`.
    """

    def __init__(self, loss_weight: float = 1.0, whiten: bool = True) -> None:
        super().__init__(loss_weight, whiten)

    def connect(self, student_dims: int, teacher_dims: int) -> None:
        """Build the regressor."""
        self.align = aligner(student_dims, teacher_dims)

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`."""
        error = (self.align(pair.student) - self.target(pair)).square()
        return self.loss_weight * mean_over_places(error, pair.valid) / 2
