"""What is seen where: the divergence between texts at each place."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor

from .attention import map_divergence
from .base import InteractionLoss, InteractionPair, masked_mean


@MODELS.register_module()
class InteractionTextLoss(InteractionLoss):
    """The other half of an interaction: which text each place belongs to.

    An attention map is normalised over places, so it says where a text is, and not that
    another one is there as well. The same raw interactions, normalised over the texts
    of an image, say at each place which text fits best::

        P'_nt = P_tn m_t / sum_u P_un m_u        A'_nq = exp(l_qn) / sum_r exp(l_rn)

    with m the mass of a map before it was normalised and l the student's logits, heads
    averaged as probabilities. The loss is the mean over layers and places of
    KL(P' || A'). It is not in the paper. Images with a single text teach nothing, so it
    is worth its time with ``present='all'``, or where images show many classes.

    Args:
        loss_weight: Factor on the loss.
    """

    uses_maps = True
    needs_mass = True

    def forward(self, pairs: list[InteractionPair], present: Tensor) -> Tensor:
        """See :meth:`InteractionLoss.forward`.

        Raises:
            ValueError: If the teacher does not tell the mass of its maps.
        """
        losses = [self._divergence(pair, present) for pair in pairs]
        return self.loss_weight * torch.stack(losses).mean()

    def _divergence(self, pair: InteractionPair, present: Tensor) -> Tensor:
        if pair.log_mass is None:
            raise ValueError(
                f'{type(self).__name__} needs the mass of the maps, which this teacher '
                'does not tell: give its targets a log_mass, or let has_mass be False'
            )
        absent = ~present[:, :, None]
        least = torch.finfo(pair.target.dtype).tiny
        raw = pair.target.clamp(min=least).log() + pair.log_mass[:, :, None]
        # finite, so that images without any text stay free of NaN
        target = raw.masked_fill(absent, -1e4).softmax(1)
        student = pair.log_texts(absent)
        # where no map of the teacher has anything there is nothing to share out
        places = (pair.target * ~absent).sum(1) > 0
        if pair.valid is not None:
            places = places & pair.valid
        kl = map_divergence(student.transpose(1, 2), target.transpose(1, 2))
        return masked_mean(kl, places)
