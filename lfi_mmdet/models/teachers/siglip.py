"""SigLIP and SigLIP 2 as teachers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .clip import CLIPTeacher, EncodedImages


@MODELS.register_module()
class SigLIPTeacher(CLIPTeacher):
    """SigLIP of open_clip: CLIP with its own pooling and a sigmoid in place of softmax.

    The image tower ends in an attention pooler with a latent query. A patch is brought
    into the joint space by passing the pooler alone, so that all attention is its own.
    Texts and images are compared one pair at a time, by
    ``sigmoid(scale * cosine + bias)``; maps are these probabilities, normalised over
    the patches.

    Args:
        model: Name of a model in open_clip, e.g. ``'ViT-B-16-SigLIP2'``.
        temperature: See :class:`CLIPTeacher`; None, the default, takes the scale the
            model was trained with, which makes maps very peaked. The bias is the
            model's own in either case.
        template: Prompt, in the lower case that SigLIP's texts are.
        **kwargs: See :class:`CLIPTeacher`.
    """

    def __init__(
        self,
        model: str,
        temperature: float | None = None,
        template: Any = 'this is a photo of {}.',
        **kwargs: Any,
    ) -> None:
        super().__init__(model, temperature=temperature, template=template, **kwargs)
        if getattr(self.network, 'logit_bias', None) is None:
            raise ValueError(
                f'teacher.model={model!r} has no logit bias, '
                'so it was not trained with a sigmoid; use CLIPTeacher'
            )

    @property
    def _bias(self) -> Tensor:
        network: Any = self.network
        return network.logit_bias.float()

    def log_weights(self, cosines: Tensor) -> Tensor:
        """Log of the sigmoid."""
        return F.logsigmoid(super().log_weights(cosines) + self._bias)

    def score(self, images: EncodedImages, prompts: dict[str, Tensor]) -> Tensor | None:
        """Probability of each pair, on its own."""
        if images.embedding is None or not self.wants_scores:
            return None
        return torch.sigmoid(self._logits(images.embedding, prompts) + self._bias)
