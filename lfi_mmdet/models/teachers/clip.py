"""CLIP as a teacher: similarity of each patch to each text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionTargets

from .attention_capture import check_attention, head_softmax
from .base import FrozenTeacher
from .layers import resolve_layers
from .open_clip_loader import (
    load_open_clip,
    load_tokenizer,
    view_of,
    vision_transformer,
)
from .prompts import fill_template

#: Bounds the memory of one pass of the text tower
TEXTS_PER_PASS = 256


@MODELS.register_module()
class CLIPTeacher(FrozenTeacher):
    """CLIP of open_clip; which patches are most like each text.

    CLIP has no attention between text and patches. Its map of a text at block m is
    made of the similarities::

        P_m = softmax over patches of cos(text, patch_m) / temperature

    with the patch tokens after block m, brought into the joint space by the tower's
    last norm and projection. CLIP trains only the CLS token for that, so in the last
    block, where the tokens of other places are mixed in, the patches need help; see
    ``mode``. Earlier blocks are read as they are.

    Args:
        model: Name of a model in open_clip with its own vision transformer, e.g.
            ``'ViT-B-16'``.
        pretrained: Tag, local file or None, see :func:`load_open_clip`.
        image_size: Side, or (height, width), of the input in pixels; None keeps the
            model's own.
        layers: ``'all'`` or indices of the image tower's blocks to read.
        mode: How the last block treats patches. ``'value'``: each attends to itself
            only (MaskCLIP). ``'qq'``: to those with a like query, and nothing is
            added to what attention returns, neither residual nor FFN (ClearCLIP).
            ``'last'``: as CLIP was trained.
        temperature: Softness of the maps. Cosines within an image differ by 0.1 or
            so: at 0.07, where CLIP's own temperature starts its training, the
            favoured patches get a few times the weight of the others; at 0.01, where
            it ends, very few patches get everything.
        template: Prompt, with ``{}`` in the place of the class name, or several,
            whose embeddings are averaged.
        present: Which texts count as present, see :class:`FrozenTeacher`.
        class_names: Classes; None takes them from the dataset.
        model_configs: Further open_clip models, see :func:`load_open_clip`.
        cache_dir: Where downloads are kept.
    """

    #: Names of the accepted ``mode`` choices
    MODES = ('value', 'qq', 'last')

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        image_size: int | Sequence[int] | None = None,
        layers: str | Sequence[int] = (-1,),
        mode: str = 'value',
        temperature: float = 0.07,
        template: str | Sequence[str] = 'a photo of a {}.',
        present: str = 'ground_truth',
        class_names: Sequence[str] | None = None,
        model_configs: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        if mode not in self.MODES:
            raise ValueError(
                f'teacher.mode={mode!r} is not known; choose from {self.MODES}'
            )
        if not temperature > 0:
            raise ValueError(f'teacher.temperature={temperature} must be above 0')
        templates = (template,) if isinstance(template, str) else tuple(template)
        if not templates:
            raise ValueError('teacher.template is an empty list')
        for text in templates:
            fill_template(text, [])
        network: Any = load_open_clip(
            model, pretrained, image_size, model_configs, cache_dir
        )
        visual = vision_transformer(network, model)
        if visual.attn_pool is not None:
            raise ValueError(
                f'the image tower of teacher.model={model!r} ends in an attentional '
                'pooler, which patches cannot pass; use CoCaTeacher'
            )
        blocks = visual.transformer.resblocks
        self.layers = resolve_layers(layers, len(blocks), 'blocks of the image tower')
        self.mode, self.temperature, self.templates = mode, temperature, templates
        self._last = len(blocks) - 1
        if mode != 'last' and self._last in self.layers:
            if len(blocks) < 2:
                raise ValueError(
                    f'teacher.mode={mode!r} needs two blocks or more; {model} has one'
                )
            try:
                check_attention(blocks[-1].attn)
            except TypeError as error:
                raise TypeError(
                    f'teacher.mode={mode!r} redoes the last block of {model}, but '
                    f"{error}; teacher.mode='last' takes the block as it is"
                ) from error
        super().__init__(view=view_of(network), present=present)
        self.tokenizer = load_tokenizer(model, cache_dir)
        self.grid_size: tuple[int, int] = tuple(visual.grid_size)
        self.freeze(network)
        if class_names is not None:
            self.set_class_names(class_names)

    @property
    def num_layers(self) -> int:
        """Number of blocks that are read."""
        return len(self.layers)

    @property
    def feature_dims(self) -> int:
        """Channels of the joint space."""
        network: Any = self.network
        return network.visual.output_dim

    @torch.no_grad()
    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Run the text tower once per template and average over the templates."""
        network: Any = self.network
        device = network.visual.conv1.weight.device
        means = []
        for template in self.templates:
            tokens = self.tokenizer(fill_template(template, class_names)).to(device)
            chunks = tokens.split(TEXTS_PER_PASS)
            encoded = torch.cat([network.encode_text(chunk) for chunk in chunks])
            means.append(F.normalize(encoded.float(), dim=-1))
        self.texts = dict(embeds=F.normalize(torch.stack(means).mean(0), dim=-1))

    @torch.no_grad()
    def interact(self, images: Tensor, present: Tensor) -> InteractionTargets:
        """Maps and features of all texts, see :class:`FrozenTeacher`."""
        self.texts = {name: t.to(images.device) for name, t in self.texts.items()}
        tokens = self._tokens(images)
        with torch.autocast(images.device.type, enabled=False):
            patches = self._project(tokens)
            texts = F.normalize(self.texts['embeds'].float(), dim=-1)
            similarity = F.normalize(patches, dim=-1) @ texts.T
            maps = (similarity.transpose(-1, -2) / self.temperature).softmax(-1)
            features = maps @ patches
        return InteractionTargets(
            maps=maps.unflatten(-1, self.grid_size), present=present, features=features
        )

    def _tokens(self, images: Tensor) -> Tensor:
        """Patch tokens after each layer that is read, (B, L, N, C)."""
        network: Any = self.network
        visual = network.visual
        redo = self.mode != 'last' and self._last in self.layers
        # a redone last block starts from what enters it
        indices = set(self.layers) - {self._last} | {self._last - 1}
        if not redo:
            indices = set(self.layers)
        output = visual.forward_intermediates(
            images.to(visual.conv1.weight.dtype),
            indices=sorted(indices),
            stop_early=True,
            intermediates_only=True,
            output_fmt='NLC',
            output_extra_tokens=True,
        )
        patches = dict(zip(sorted(indices), output['image_intermediates']))
        if redo:
            prefix = output['image_intermediates_prefix'][-1]
            tokens = torch.cat((prefix, patches[self._last - 1]), 1)
            redone = dense_block(
                visual.transformer.resblocks[self._last], tokens, self.mode
            )
            patches[self._last] = redone[:, prefix.shape[1] :]
        return torch.stack([patches[layer].float() for layer in self.layers], 1)

    def _project(self, tokens: Tensor) -> Tensor:
        """Bring patch tokens into the joint space, in float32."""
        network: Any = self.network
        visual = network.visual
        normed = visual.ln_post(tokens.to(visual.ln_post.weight.dtype)).float()
        return normed if visual.proj is None else normed @ visual.proj.float()


def dense_block(block: Any, tokens: Tensor, mode: str) -> Tensor:
    """Run a transformer block so that patches keep their place.

    Args:
        block: Block of open_clip with a ``torch.nn.MultiheadAttention``.
        tokens: (B, N, C), what enters the block.
        mode: ``'value'`` or ``'qq'``, see :class:`CLIPTeacher`.

    Returns:
        (B, N, C).
    """
    attn: nn.MultiheadAttention = block.attn
    normed = block.ln_1(tokens)
    q_weight, _, v_weight = attn.in_proj_weight.chunk(3)
    q_bias, _, v_bias = attn.in_proj_bias.chunk(3)
    value = F.linear(normed, v_weight, v_bias)
    if mode == 'value':
        tokens = tokens + block.ls_1(attn.out_proj(value))
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    query = F.linear(normed, q_weight, q_bias)
    weights = head_softmax(query, query, attn.num_heads)
    heads = value.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    mixed = (weights.to(heads.dtype) @ heads).transpose(1, 2).flatten(2)
    return block.ls_1(attn.out_proj(mixed))
