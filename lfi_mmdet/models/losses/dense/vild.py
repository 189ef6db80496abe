"""ViLD: what the teacher takes regions for."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor
from torchvision.ops import roi_align

from .base import DenseLoss, DensePair


@MODELS.register_module()
class ViLDLoss(DenseLoss):
    """Distillation of regions after ViLD (Gu et al., ICLR 2022, arXiv 2104.13921).

    ViLD sends crops of class-agnostic proposals through CLIP and draws the region
    embeddings of a detector, which are compared with text embeddings at tau = 0.01, to
    them (L1, weight 0.5). This loss keeps proposals, texts and temperature, for a
    detector with an ordinary classifier: the teacher's tokens v are averaged in each
    region r (RoIAlign), and their classes are drawn upon the student's class logits z::

        p_r = softmax over classes of cos(v_r, text) / tau
        q_r = softmax over classes of z_r,  background left out
        L = mean over regions of KL(p_r || q_r)         divergence='kl'
            mean over regions and classes of |p_r - q_r|      divergence='l1'

    So it differs from the paper in this: classes are matched, not embeddings, as our
    classifier has none in the joint space; tokens of one pass over the image stand in
    for those of a crop, which would take a pass per region; and background is not
    taught, as the teacher has no text for it. Proposals are those of the student's RPN
    in this very step, and no label takes part.

    Args:
        loss_weight: Factor on the loss; 0.5 is the paper's for its L1.
        temperature: tau, 0.01 in the paper.
        divergence: One of ``DIVERGENCES``.
        num_regions: Most proposals per image, best first.
    """

    needs_regions = True
    needs_classes = True
    #: Names of the accepted ``divergence`` choices
    DIVERGENCES = ('kl', 'l1')

    def __init__(
        self,
        loss_weight: float = 0.5,
        temperature: float = 0.01,
        divergence: str = 'kl',
        num_regions: int = 100,
    ) -> None:
        super().__init__(loss_weight)
        if not temperature > 0:
            raise ValueError(f'ViLDLoss.temperature={temperature} must be above 0')
        if divergence not in self.DIVERGENCES:
            raise ValueError(
                f'ViLDLoss.divergence={divergence!r} is not known; choose from '
                f'{self.DIVERGENCES}'
            )
        if num_regions < 1:
            raise ValueError(f'ViLDLoss.num_regions={num_regions} must be at least 1')
        self.temperature, self.divergence = temperature, divergence
        self.num_regions = num_regions

    def taught(self, pair: DensePair) -> Tensor:
        """Log of what the teacher takes each region for, (R, T)."""
        assert pair.boxes is not None and pair.class_embeds is not None
        pooled = roi_align(pair.teacher, pair.boxes, 1, aligned=True)[..., 0, 0]
        # unlike a cosine, a mean over padding's zeros as well has the same direction
        cosines = F.normalize(pooled, dim=-1) @ pair.class_embeds.T
        return (cosines / self.temperature).log_softmax(-1)

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`.

        Raises:
            ValueError: If student and teacher differ in the number of classes.
        """
        assert pair.logits is not None and pair.class_embeds is not None
        classes, texts = pair.logits.shape[1] - 1, len(pair.class_embeds)
        if classes != texts:
            raise ValueError(
                f'the box head has {classes} classes (roi_head.bbox_head.num_classes), '
                f'but the teacher {texts} (teacher.class_names)'
            )
        student = pair.logits[:, :-1].log_softmax(-1)
        teacher = self.taught(pair)
        if self.divergence == 'kl':
            errors = (teacher.exp() * (teacher - student)).sum(-1)
        else:
            errors = (teacher.exp() - student.exp()).abs().mean(-1)
        return self.loss_weight * errors.sum() / max(len(errors), 1)
