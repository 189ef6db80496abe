"""CoCa as a teacher: attention of its text decoder, traced back to the patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor

from lfi_mmdet.structures import InteractionTargets

from .attention_capture import AttentionRecord, capture_attention, check_attention
from .base import FrozenTeacher
from .layers import resolve_layers
from .open_clip_loader import (
    load_open_clip,
    load_tokenizer,
    view_of,
    vision_transformer,
)
from .prompts import fill_template, name_span

#: Bounds the memory of one decoder pass; more (image, text) pairs run in turns
PAIRS_PER_PASS = 256
#: Bounds the memory of one pass of the text tower
TEXTS_PER_PASS = 256


@MODELS.register_module()
class CoCaTeacher(FrozenTeacher):
    """CoCa of open_clip; which patches each word attends to, per decoder layer.

    The decoder of CoCa does not attend to patches but to the tokens of an attentional
    pooler. The map of a text at decoder layer m is therefore a product::

        P_m = normalise(A_m @ pool)     A_m: decoder, the rows of the word, (Q,)
                                        pool: pooler, (Q, patches)

    with both attentions averaged over their heads, A_m also over the tokens of the
    class name, and the pooler's contrastive query and the CLS column left out. As any
    product of attentions it is linear: it leaves out value and output projections.
    In a model without a pooler the decoder attends to patches, and A_m is the map.

    Args:
        model: Name of a CoCa model in open_clip, e.g. ``'coca_ViT-L-14'``.
        pretrained: Tag, local file or None, see :func:`load_open_clip`.
        image_size: Side, or (height, width), of the input in pixels; None keeps the
            model's own.
        layers: ``'all'`` or indices of the decoder layers to read.
        token_row: The decoder is causal, and its row t predicts token t + 1.
            ``'reads'`` takes the rows where a class name's tokens are the input,
            ``'predicts'`` the rows that have to say them.
        template: Prompt, with ``{}`` in the place of the class name.
        present: Which texts count as present, see :class:`FrozenTeacher`.
        class_names: Classes; None takes them from the dataset.
        model_configs: Further open_clip models, see :func:`load_open_clip`.
        cache_dir: Where downloads are kept.
    """

    #: Names of the accepted ``token_row`` choices
    TOKEN_ROWS = ('reads', 'predicts')

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        image_size: int | Sequence[int] | None = None,
        layers: str | Sequence[int] = 'all',
        token_row: str = 'reads',
        template: str = 'a photo of a {}.',
        present: str = 'ground_truth',
        class_names: Sequence[str] | None = None,
        model_configs: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        if token_row not in self.TOKEN_ROWS:
            raise ValueError(
                f'teacher.token_row={token_row!r} is not known; choose from '
                f'{self.TOKEN_ROWS}'
            )
        fill_template(template, [])
        network: Any = load_open_clip(
            model, pretrained, image_size, model_configs, cache_dir
        )
        _check_coca(network, model)
        super().__init__(view=view_of(network), present=present)
        self.token_row, self.template = token_row, template
        self.tokenizer = load_tokenizer(model, cache_dir)
        decoder = network.text_decoder
        self.layers = resolve_layers(layers, len(decoder.resblocks), 'decoder layers')
        # what lies behind the last map is never needed: neither the layers above nor
        # the vocabulary, whose logits would cost more than the rest of the decoder
        decoder.resblocks = decoder.resblocks[: self.layers[-1] + 1]
        decoder.cross_attn = decoder.cross_attn[: self.layers[-1] + 1]
        decoder.text_projection = None
        network.visual.output_tokens = network.text.output_tokens = True
        self.grid_size: tuple[int, int] = tuple(network.visual.grid_size)
        self.freeze(network)
        if class_names is not None:
            self.set_class_names(class_names)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers that are read."""
        return len(self.layers)

    @property
    def feature_dims(self) -> int:
        """Width of the patch tokens."""
        network: Any = self.network
        return network.visual.conv1.out_channels

    @torch.no_grad()
    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Run the text tower once and find the rows of every class name.

        Raises:
            ValueError: If a class name is not found among the tokens of its prompt,
                or no row before it could predict it.
        """
        network: Any = self.network
        prompts = fill_template(self.template, class_names)
        spans = [name_span(self.tokenizer, self.template, n) for n in class_names]
        shift = 0
        if self.token_row == 'predicts':
            shift = 1
            if any(span.start == 1 for span in spans):
                raise ValueError(
                    "teacher.token_row='predicts' needs a word before the class name "
                    f'in teacher.template={self.template!r}: only the start token '
                    'could predict it'
                )
        rows = torch.zeros(len(spans), max(map(len, spans), default=0)).long()
        weights = torch.zeros(rows.shape)
        for row, weight, span in zip(rows, weights, spans):
            row[: len(span)] = torch.tensor(span) - shift
            weight[: len(span)] = 1 / len(span)
        device = network.text.positional_embedding.device
        tokens = self.tokenizer(prompts).to(device)
        # later rows cannot change earlier ones in a causal decoder: cut them off
        length = max((span.stop for span in spans), default=0)
        embeds = [
            network.text(chunk)[1][:, :length] for chunk in tokens.split(TEXTS_PER_PASS)
        ]
        self.texts = dict(
            embeds=torch.cat(embeds), rows=rows.to(device), weights=weights.to(device)
        )

    @torch.no_grad()
    def interact(self, images: Tensor, present: Tensor) -> InteractionTargets:
        """Maps and features of the present texts, see :class:`FrozenTeacher`.

        Texts that are not present have uniform maps and features of zeros.
        """
        network: Any = self.network
        visual = network.visual
        self.texts = {name: t.to(images.device) for name, t in self.texts.items()}
        poolers = [] if visual.attn_pool is None else [visual.attn_pool.attn]
        with capture_attention(poolers) as records:
            embeds = visual(images.to(visual.conv1.weight.dtype))[1]
        with torch.autocast(images.device.type, enabled=False):
            mixing, values = self._patches(records, embeds)

        shape = (len(images), self.num_layers, present.shape[1], values.shape[1])
        maps = values.new_full(shape, 1 / values.shape[1])
        image_ids, text_ids = present.nonzero(as_tuple=True)
        pairs = zip(image_ids.split(PAIRS_PER_PASS), text_ids.split(PAIRS_PER_PASS))
        for image, text in pairs if len(image_ids) else ():
            attention = self._decode(embeds[image], text)
            with torch.autocast(images.device.type, enabled=False):
                if mixing is not None:
                    attention = attention @ mixing[image]
                attention = attention[..., -values.shape[1] :]
                attention = attention.clamp(min=torch.finfo(torch.float32).tiny)
                maps[image, :, text] = attention / attention.sum(-1, keepdim=True)
        with torch.autocast(images.device.type, enabled=False):
            features = (maps @ values[:, None]) * present[:, None, :, None]
        return InteractionTargets(
            maps=maps.unflatten(-1, self.grid_size), present=present, features=features
        )

    def _patches(
        self, records: list[AttentionRecord], embeds: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """How the decoder's keys are mixed from patches, and the patch tokens.

        Args:
            records: The pooler's attention; empty without a pooler.
            embeds: (B, Q, C), what the decoder attends to.

        Returns:
            (B, Q, N) or None, and (B, N, C).
        """
        patches = self.grid_size[0] * self.grid_size[1]
        if not records:
            return None, embeds[:, -patches:].float()
        (record,) = records
        assert record.key is not None
        pooling = record.weights().mean(1)
        # the first query is the contrastive one, unless that has a pooler of its own
        contrastive = pooling.shape[1] - embeds.shape[1]
        return pooling[:, contrastive:, -patches:], record.key[:, -patches:].float()

    def _decode(self, embeds: Tensor, text: Tensor) -> Tensor:
        """Attention of the class names in (image, text) pairs.

        Args:
            embeds: (M, Q, C), the image of each pair.
            text: Long (M,), the text of each pair.

        Returns:
            (M, L, Q), float32.
        """
        network: Any = self.network
        decoder = network.text_decoder
        modules = [decoder.cross_attn[layer].attn for layer in self.layers]
        with capture_attention(modules) as records:
            decoder(embeds, self.texts['embeds'][text].to(embeds.dtype))
        rows, weights = self.texts['rows'][text], self.texts['weights'][text].float()
        attention = torch.stack([r.weights(rows).mean(1) for r in records], 1)
        return (attention * weights[:, None, :, None]).sum(2)


def _check_coca(network: Any, model: str) -> None:
    """Check that all parts the teacher reads are there.

    Raises:
        ValueError: If the model is no CoCa, or its towers are not open_clip's own.
        TypeError: If its attention cannot be read.
    """
    from open_clip import CoCa
    from open_clip.transformer import TextTransformer

    if not isinstance(network, CoCa):
        raise ValueError(
            f'teacher.model={model!r} is a {type(network).__name__} without a text '
            'decoder; CoCaTeacher takes coca_* models, CLIPTeacher takes this one'
        )
    visual = vision_transformer(network, model)
    if not isinstance(network.text, TextTransformer):
        raise ValueError(
            f'teacher.model={model!r} has the text tower {type(network.text).__name__};'
            " only open_clip's own TextTransformer, with its BPE tokens, is supported"
        )
    for block in network.text_decoder.cross_attn:
        check_attention(block.attn)
    if visual.attn_pool is not None:
        check_attention(visual.attn_pool.attn)
