"""Trains a CoCa from captions, to be a teacher afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModel
from torch import Tensor

from ..losses.noun_presence import noun_logits, noun_presence_loss
from ..teachers.caption_words import caption_words
from ..teachers.coca_readings import alone_in_joint_space, check_coca
from ..teachers.layers import resolve_layers
from ..teachers.open_clip_loader import load_open_clip, load_tokenizer, view_of
from ..teachers.prompts import class_prompts
from ..teachers.towers import OpenClipTower


@MODELS.register_module()
class CaptionPretrainer(BaseModel):
    """A CoCa of open_clip, trained from images and captions alone.

    The losses are CoCa's own two (what the decoder says next; which caption belongs to
    which image) and, because a small model learns little from them in an affordable
    number of steps, a third: which of some nouns a caption names, asked of the patches
    one by one, see :func:`noun_logits`. No box, mask or label is used. The third one
    trains exactly what ``reading='similarity'`` of :class:`CoCaTeacher` reads.

    Args:
        model: Name of a CoCa model in open_clip whose decoder attends to patches or
            to an attentional pooler.
        nouns: The nouns that the third loss asks for, in the singular.
        model_configs: Further open_clip models, see :func:`load_open_clip`.
        pretrained: Weights to start from; None for random ones.
        template: Prompts of the nouns, see :class:`CoCaTeacher`; one is drawn in every
            step.
        layers: Blocks of the image tower after which patches are asked; the last one
            has to be among them.
        noun_weight: Weight of the third loss.
        caption_weight: Weight of what the decoder says.
        contrastive_weight: Weight of which caption belongs to which image.
        caption_share: Share of a batch whose captions are read. Captions cost as much
            time as images, and teach less.
        noun_scale: Start value of the scale of cosines, ``exp(logit_scale)``.
        noun_bias: Start value of ``logit_bias``.
        init_cfg: As of every model of mmengine; not used.

    Raises:
        ValueError: If the last block is not among ``layers``, or a share or weight is
            out of range.
    """

    def __init__(
        self,
        model: str,
        nouns: Sequence[str],
        model_configs: str | None = None,
        pretrained: str | None = None,
        template: str | Sequence[str] = 'a photo of a {}.',
        layers: str | Sequence[int] = (-1,),
        noun_weight: float = 4.0,
        caption_weight: float = 1.0,
        contrastive_weight: float = 0.2,
        caption_share: float = 0.25,
        noun_scale: float = 10.0,
        noun_bias: float = -5.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        from open_clip.loss import CoCaLoss

        if not 0 < caption_share <= 1:
            raise ValueError(f'model.caption_share={caption_share}; choose 0 to 1')
        network: Any = load_open_clip(model, pretrained, model_configs=model_configs)
        check_coca(network, model)
        if network.logit_bias is None:
            raise ValueError(
                f'model.model={model!r} has no logit_bias, which the noun loss needs; '
                'set init_logit_bias in its configuration'
            )
        self.network = network
        self.tokenizer = load_tokenizer(model, model_configs=model_configs)
        depth = len(network.visual.transformer.resblocks)
        self.layers = resolve_layers(layers, depth, 'blocks of the image tower')
        if depth - 1 not in self.layers:
            raise ValueError(
                f'model.layers={layers} lacks the last block, {depth - 1}, which the '
                'decoder attends to'
            )
        if pretrained is None:
            with torch.no_grad():
                network.logit_scale.fill_(math.log(noun_scale))
                network.logit_bias.fill_(noun_bias)
        view = view_of(network)
        for name in ('mean', 'std'):
            value = 255 * torch.tensor(view[name]).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.nouns = tuple(nouns)
        templates = [template] if isinstance(template, str) else list(template)
        self.prompts = [
            [prompt.text for prompt in class_prompts([one], self.nouns)]
            for one in templates
        ]
        self.noun_weight, self.caption_share = noun_weight, caption_share
        pad = int(network.pad_id)
        self.coca_loss = CoCaLoss(caption_weight, contrastive_weight, pad_id=pad)

    @property
    def tower(self) -> OpenClipTower:
        """The image tower, read as the teacher reads it."""
        network: Any = self.network
        return OpenClipTower(network.visual)

    def named(self, captions: Sequence[str]) -> Tensor:
        """Which nouns each caption names, bool (B, T)."""
        table = torch.zeros(len(captions), len(self.nouns), dtype=torch.bool)
        for row, caption in zip(table, captions):
            for word in caption_words([caption], self.nouns):
                row[word.row] = True
        return table

    def forward(
        self,
        inputs: Tensor | list[Tensor],
        caption: Sequence[str],
        mode: str = 'loss',
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            inputs: Images (B, 3, S, S) in RGB from 0 to 255.
            caption: One per image.
            mode: Only ``'loss'``.
        """
        if mode != 'loss':
            raise ValueError(f'mode={mode!r}; a CaptionPretrainer only has losses')
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        network: Any = self.network
        images = (inputs.float() - self.mean) / self.std
        tokens, prefix, _ = self.tower.intermediates(images, self.layers)
        stacked = torch.stack([tokens[i][:, prefix:] for i in self.layers], 1)
        patches = alone_in_joint_space(network.visual, stacked)
        device = patches.device
        nouns = self._embed(self._draw_prompts(), device)
        cosines = F.normalize(patches, dim=-1) @ nouns.T
        logits = noun_logits(cosines, network.logit_scale.exp(), network.logit_bias)
        losses = dict(
            loss_nouns=self.noun_weight
            * noun_presence_loss(logits, self.named(caption).to(device))
        )
        count = math.ceil(self.caption_share * len(caption))
        losses.update(
            self._caption_losses(tokens[max(tokens)][:count], caption[:count])
        )
        return losses

    def _draw_prompts(self) -> list[str]:
        return self.prompts[int(torch.randint(len(self.prompts), ()))]

    def _embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        network: Any = self.network
        return network.encode_text(self.tokenizer(list(texts)).to(device))

    def _caption_losses(
        self, tokens: Tensor, captions: Sequence[str]
    ) -> dict[str, Tensor]:
        network: Any = self.network
        pooled, embeds = network.visual._pool(tokens)
        if network.visual.proj is not None:
            pooled = pooled @ network.visual.proj
        words = self.tokenizer(list(captions)).to(tokens.device)
        # nothing is said behind the longest caption
        words = words[:, : int((words != network.pad_id).sum(1).max())]
        texts, states = network.text(words)
        logits = network.text_decoder(embeds, states[:, : words.shape[1] - 1])
        contrastive, said = self.coca_loss(
            F.normalize(pooled.reshape(len(tokens), -1), dim=-1),
            F.normalize(texts, dim=-1),
            logits,
            words[:, 1:],
            network.logit_scale.exp(),
        )
        return dict(loss_caption=said, loss_contrastive=contrastive)

    def init_weights(self) -> None:
        """Leave the weights as open_clip made them."""
        self._is_init = True
