"""CLIP as a teacher: similarity of each patch to each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .attention_gradient import explicit_attention, relevance
from .base import check_choice
from .layers import resolve_layers
from .open_clip_loader import load_open_clip, load_tokenizer, view_of
from .prompted import PromptTeacher, Reading
from .prompts import Prompt
from .towers import MODES, image_tower

#: Bounds the memory of one pass of the text tower
TEXTS_PER_PASS = 256


@dataclass
class EncodedImages:
    """Images as :class:`CLIPTeacher` sees them.

    Attributes:
        images: (B, 3, S, S).
        patches: Patches in the joint space, (B, L, N, E), float32.
        embedding: Unit vectors of the images, (B, E), float32; None if no score and
            no gradient is wanted.
        probs: With gradients, attention of each layer that is read, (B, h, Q, K).
        prefix: Tokens in front of the patches.
        tokens: Patches as the tower has them, (B, L, N, C), float32.
    """

    images: Tensor
    patches: Tensor
    embedding: Tensor | None = None
    probs: Sequence[Tensor] = ()
    prefix: int = 0
    tokens: Tensor | None = None


@MODELS.register_module()
class CLIPTeacher(PromptTeacher):
    """CLIP of open_clip; which patches are most like each text.

    Takes every model of open_clip whose image tower is a plain transformer: OpenAI's
    and LAION's CLIP, MetaCLIP, DFN, and, from timm, EVA-CLIP. CLIP has no attention
    between text and patches. With ``reading='similarity'`` the map of a text at block
    m is made of the similarities::

        P_m = softmax over patches of cos(text, patch_m) / temperature

    with the patch tokens after block m, brought into the joint space by the tower's
    last norm and projection. CLIP trains only the CLS token for that, so in the last
    block, where the tokens of other places are mixed in, the patches need help; see
    ``mode``. Earlier blocks are read as they are. With ``reading='gradient'`` the map
    is the attention of the CLS token in block m, weighted by its gradient for the
    similarity of image and text (mean over heads of its positive part); it takes a
    backward pass per text and is meant for caches.

    Args:
        model: Name of a model in open_clip, e.g. ``'ViT-B-16'`` or ``'EVA02-B-16'``.
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
            whose embeddings are averaged, as those of synonyms are.
        class_names: Classes; None takes them from the dataset.
        model_configs: Further open_clip models, see :func:`load_open_clip`.
        cache_dir: Where downloads are kept.
        tokenizer: Folder of a Hugging Face tokenizer, for models that would download
            theirs; None for the model's own.
        **common: For :class:`PromptTeacher` and :class:`FrozenTeacher`.
    """

    #: Names of the accepted ``mode`` choices
    MODES = MODES
    READINGS = ('similarity', 'gradient')
    # a caption's embedding is that of all its words
    IN_CONTEXT = False

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        image_size: int | Sequence[int] | None = None,
        layers: str | Sequence[int] = (-1,),
        mode: str = 'value',
        temperature: float | None = 0.07,
        template: str | Sequence[str] = 'a photo of a {}.',
        class_names: Sequence[str] | None = None,
        model_configs: str | None = None,
        cache_dir: str | None = None,
        tokenizer: str | None = None,
        **common: Any,
    ) -> None:
        check_choice('mode', mode, self.MODES)
        if temperature is not None and not temperature > 0:
            raise ValueError(f'teacher.temperature={temperature} must be above 0')
        network: Any = load_open_clip(
            model, pretrained, image_size, model_configs, cache_dir
        )
        tower = image_tower(network, model)
        super().__init__(view=view_of(network), template=template, **common)
        self.tower = tower
        if getattr(network.visual, 'attn_pool', None) is not None:
            raise ValueError(
                f'the image tower of teacher.model={model!r} ends in an attentional '
                'pooler, which patches cannot pass; use CoCaTeacher'
            )
        depth = len(self.tower.blocks)
        self.layers = resolve_layers(layers, depth, 'blocks of the image tower')
        if mode != 'last' and depth - 1 in self.layers and depth < 2:
            raise ValueError(
                f'teacher.mode={mode!r} needs two blocks or more; {model} has one'
            )
        self.mode, self.temperature = mode, temperature
        self.tokenizer = load_tokenizer(model, cache_dir, tokenizer, model_configs)
        self.grid_size = self.tower.grid_size
        self.embed_dims = int(self._embed(network, [Prompt('a', 0, 1, 0)]).shape[1])
        self.token_dims = dict(tower=tower.width, joint=self.embed_dims)
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
        return self.embed_dims

    # -- texts -------------------------------------------------------------------------
    def _embed(self, network: Any, prompts: Sequence[Prompt]) -> Tensor:
        device = network.logit_scale.device
        tokens = self.tokenizer([prompt.text for prompt in prompts]).to(device)
        with torch.no_grad():
            chunks = tokens.split(TEXTS_PER_PASS)
            encoded = torch.cat([network.encode_text(chunk) for chunk in chunks])
        return F.normalize(encoded.float(), dim=-1)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Run the text tower."""
        if not prompts:
            network: Any = self.network
            empty = torch.zeros(0, self.embed_dims, device=network.logit_scale.device)
            return dict(embeds=empty)
        return dict(embeds=self._embed(self.network, prompts))

    def merge_prompts(
        self, prompts: dict[str, Tensor], rows: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Average the embeddings of all prompts of a class."""
        embeds = prompts['embeds']
        count = int(rows.max()) + 1 if len(rows) else 0
        total = embeds.new_zeros(count, embeds.shape[1])
        total = total.index_add(0, rows.to(embeds.device), embeds)
        return dict(embeds=F.normalize(total, dim=-1)), torch.arange(count)

    # -- images ------------------------------------------------------------------------
    def encode_images(self, images: Tensor) -> EncodedImages:
        """Run the image tower; with gradients, keep its attention in the graph."""
        if self.reading == 'gradient':
            return self._encode_with_gradients(images)
        tokens, embedding = self.tower.patch_tokens(
            images, self.layers, self.mode, pooled=self.wants_scores
        )
        with torch.autocast(images.device.type, enabled=False):
            patches = self.tower.project(tokens)
            if embedding is not None:
                embedding = F.normalize(embedding.float(), dim=-1)
        return EncodedImages(images, patches, embedding, tokens=tokens)

    def _encode_with_gradients(self, images: Tensor) -> EncodedImages:
        modules = [self.tower.attentions[layer] for layer in self.layers]
        with explicit_attention(modules) as records:
            tokens, prefix, embedding = self.tower.intermediates(
                images, self.layers, pooled=True
            )
            assert embedding is not None
            embedding = F.normalize(embedding.float(), dim=-1)
        stacked = torch.stack([tokens[i][:, prefix:].detach() for i in self.layers], 1)
        tower = stacked.float()
        with torch.autocast(images.device.type, enabled=False):
            patches = self.tower.project(tower)
        probs = [record.probs for record in records if record.probs is not None]
        return EncodedImages(images, patches, embedding, probs, prefix, tower)

    def dense_tokens(self, images: EncodedImages) -> Tensor | None:
        """Patches of the blocks that are read, the last one as ``mode`` has it."""
        return images.patches if self.wants_tokens == 'joint' else images.tokens

    def class_embeds(self) -> Tensor:
        """Embeddings of the classes, averaged over their prompts."""
        return F.normalize(self.texts['embeds'].float(), dim=-1)

    def score(self, images: EncodedImages, prompts: dict[str, Tensor]) -> Tensor | None:
        """Softmax over the prompts of cosines times the model's logit scale."""
        if images.embedding is None or not self.wants_scores:
            return None
        return self._logits(images.embedding, prompts).softmax(-1)

    def _logits(self, embedding: Tensor, prompts: dict[str, Tensor]) -> Tensor:
        """Cosines of images and prompts times the model's scale, (B, P), float32."""
        network: Any = self.network
        with torch.autocast(embedding.device.type, enabled=False):
            cosines = embedding.detach() @ prompts['embeds'].float().T
            return cosines * network.logit_scale.float().exp()

    def read(
        self,
        images: EncodedImages,
        prompts: dict[str, Tensor],
        pairs: tuple[Tensor, Tensor],
    ) -> Reading:
        """Maps of (image, prompt) pairs; see :class:`PromptTeacher`."""
        with torch.autocast(images.patches.device.type, enabled=False):
            embeds = F.normalize(prompts['embeds'].float(), dim=-1)
            if self.reading == 'gradient':
                raw = self._gradient_maps(images, embeds, pairs)
                log_mass = raw.sum(-1).clamp(min=1e-30).log()
                maps = normalise_maps(raw)
                shape = (len(images.patches), len(embeds), *maps.shape[1:])
                every = maps.new_zeros(shape).index_put(pairs, maps)
            else:
                unit = F.normalize(images.patches, dim=-1)
                logits = self.log_weights(torch.einsum('blnc,pc->bpln', unit, embeds))
                mass = logits.logsumexp(-1)
                every = (logits - mass[..., None]).exp()
                maps, log_mass = every[pairs], mass[pairs]
            # of all prompts: a few needless maps cost less than a copy of the patches
            # for each pair
            features = torch.einsum('bpln,blnc->bplc', every, images.patches)[pairs]
        return Reading(maps=maps, log_mass=log_mass, features=features)

    def log_weights(self, cosines: Tensor) -> Tensor:
        """Log of a patch's weight in a map, up to a constant, from its cosine."""
        if self.temperature is None:
            network: Any = self.network
            return cosines * network.logit_scale.float().exp()
        return cosines / self.temperature

    def _gradient_maps(
        self, images: EncodedImages, embeds: Tensor, pairs: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Gradient-weighted attention of (image, prompt) pairs, (M, L, N)."""
        shape = (len(pairs[0]), len(self.layers), images.patches.shape[2])
        maps = images.patches.new_zeros(shape)
        for prompt in pairs[1].unique().tolist():
            with torch.inference_mode(False), torch.enable_grad():
                assert images.embedding is not None
                score = (images.embedding @ embeds[prompt].clone()).sum()
                grads = torch.autograd.grad(
                    score, images.probs, retain_graph=True, allow_unused=True
                )
            where = (pairs[1] == prompt).nonzero()[:, 0]
            for index, (probs, grad) in enumerate(zip(images.probs, grads)):
                if grad is not None:
                    seen = relevance(probs.detach(), grad)[:, :, images.prefix :]
                    # the CLS token's row; without one, all rows alike
                    row = seen[:, 0] if images.prefix else seen.mean(1)
                    maps[where, index] = row[pairs[0][where]]
        return maps


def normalise_maps(raw: Tensor) -> Tensor:
    """Make maps (..., N) of non-negative weights sum to 1; uniform where all are 0."""
    # products of gradients may be so small that their sum would have to be clamped
    peak = raw.amax(-1, keepdim=True)
    scaled = raw / peak.clamp(min=torch.finfo(raw.dtype).tiny)
    total = scaled.sum(-1, keepdim=True)
    uniform = torch.full_like(raw, 1 / raw.shape[-1])
    return torch.where(peak > 0, scaled / total.clamp(min=1e-30), uniform)
