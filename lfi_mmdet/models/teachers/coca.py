"""CoCa as a teacher: attention of its text decoder, traced back to the patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .attention_capture import capture_attention
from .base import check_choice
from .clip import normalise_maps
from .coca_readings import (
    CoCaImages,
    alone_in_joint_space,
    caption_relevance,
    check_coca,
    decoder_attention,
)
from .coca_texts import locate, row_table
from .heads import HeadChoice
from .layers import resolve_layers
from .open_clip_loader import load_open_clip, load_tokenizer, view_of
from .prompted import PromptTeacher, Reading
from .prompts import Prompt
from .towers import OpenClipTower

#: Bounds the memory of one decoder pass; more (image, prompt) pairs run in turns
PAIRS_PER_PASS = 256
#: The same with gradients; 27 MB of activations are kept per pair of coca_ViT-L-14
GRADIENT_PAIRS_PER_PASS = 32
#: Bounds the memory of one pass of the text tower
TEXTS_PER_PASS = 256


@MODELS.register_module()
class CoCaTeacher(PromptTeacher):
    """CoCa of open_clip; which patches each word attends to, per decoder layer.

    The decoder of CoCa does not attend to patches but to the tokens of an attentional
    pooler. With ``reading='attention'``, the map of a text at decoder layer m is
    therefore a product::

        P_m = normalise(A_m @ pool)     A_m: decoder, the rows of the word, (Q,)
                                        pool: pooler, (Q, patches)

    with the pooler's attention averaged over its heads, A_m over the tokens of the
    class name and over the decoder's heads or one of them, and the pooler's
    contrastive query and the CLS column left out. As any product of attentions it is
    linear: it leaves out value and output projections. In a model without a pooler
    the decoder attends to patches, and A_m is the map.

    With ``reading='gradient'`` both attentions are first weighted by the positive part
    of their gradients for the log-likelihood of the class name in its prompt, given
    the image. It takes a backward pass for every text and is meant for caches. With
    ``reading='similarity'`` the decoder is not used: maps are those of
    :class:`CLIPTeacher`, with each patch sent alone through the contrastive pooling,
    and layers are blocks of the image tower.

    Args:
        model: Name of a CoCa model in open_clip, e.g. ``'coca_ViT-L-14'``.
        pretrained: Tag, local file or None, see :func:`load_open_clip`.
        image_size: Side, or (height, width), of the input in pixels; None keeps the
            model's own.
        layers: ``'all'`` or indices of the decoder layers to read; for similarities,
            of the image tower's blocks.
        heads: Heads of the decoder, see :class:`HeadChoice`; with ``'keep'`` there are
            layers x heads layers.
        token_row: The decoder is causal, and its row t predicts token t + 1.
            ``'reads'`` takes the rows where a class name's tokens are the input,
            ``'predicts'`` the rows that have to say them. None: ``'reads'`` for
            attention; gradients need ``'predicts'``, as what is said does not depend
            on what is read afterwards.
        temperature: Softness of the similarity maps, see :class:`CLIPTeacher`.
        template: Prompt, with ``{}`` in the place of the class name, or several, whose
            maps are averaged (embeddings, for similarities).
        class_names: Classes; None takes them from the dataset.
        model_configs: Further open_clip models, see :func:`load_open_clip`.
        cache_dir: Where downloads are kept.
        **common: For :class:`PromptTeacher` and :class:`FrozenTeacher`.
    """

    READINGS = ('attention', 'gradient', 'similarity')
    #: Names of the accepted ``token_row`` choices
    TOKEN_ROWS = ('reads', 'predicts')

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        image_size: int | Sequence[int] | None = None,
        layers: str | Sequence[int] = 'all',
        heads: str | Sequence[int] = 'mean',
        token_row: str | None = None,
        temperature: float = 0.07,
        template: str | Sequence[str] = 'a photo of a {}.',
        class_names: Sequence[str] | None = None,
        model_configs: str | None = None,
        cache_dir: str | None = None,
        **common: Any,
    ) -> None:
        if token_row is not None:
            check_choice('token_row', token_row, self.TOKEN_ROWS)
        if not temperature > 0:
            raise ValueError(f'teacher.temperature={temperature} must be above 0')
        network: Any = load_open_clip(
            model, pretrained, image_size, model_configs, cache_dir
        )
        check_coca(network, model)
        super().__init__(view=view_of(network), template=template, **common)
        self.temperature = temperature
        self.token_row = self._token_row(token_row)
        self.tokenizer = load_tokenizer(model, cache_dir, model_configs=model_configs)
        network.visual.output_tokens = network.text.output_tokens = True
        self.tower = OpenClipTower(network.visual)
        self.grid_size = self.tower.grid_size
        decoder, blocks = network.text_decoder, self.tower.blocks
        num_heads = decoder.cross_attn[0].attn.num_heads
        if self.reading == 'similarity':
            self.layers = resolve_layers(layers, len(blocks), 'blocks')
            if heads != 'mean':
                raise ValueError(
                    f'teacher.heads={heads!r} does not go with teacher.reading='
                    "'similarity', which reads no attention"
                )
        else:
            depth = len(decoder.resblocks)
            self.layers = resolve_layers(layers, depth, 'decoder layers')
        self.heads = HeadChoice(heads, num_heads)
        # a similarity is that of a whole text
        self.IN_CONTEXT = self.reading != 'similarity'
        self._strip(network)
        joint = int(network.visual.output_dim)
        self.token_dims = dict(tower=self.tower.width, joint=joint)
        self.freeze(network)
        if class_names is not None:
            self.set_class_names(class_names)

    def _token_row(self, token_row: str | None) -> str:
        """Choose the rows to read, where that was left open."""
        if self.reading != 'gradient':
            return token_row or 'reads'
        if token_row == 'reads':
            raise ValueError(
                "teacher.token_row='reads' does not go with teacher.reading="
                "'gradient': the rows that read a name come after those that say it, "
                "so nothing hangs on them; choose 'predicts'"
            )
        return 'predicts'

    def _strip(self, network: Any) -> None:
        """Drop what lies behind the last map: it would only cost time and memory."""
        decoder = network.text_decoder
        if self.reading == 'similarity':
            network.text_decoder = None
            return
        head, decoder.text_projection = decoder.text_projection, None
        if self.reading == 'gradient':
            # for the rows of the words only; of all rows, the logits of the vocabulary
            # would cost more than the rest of the decoder
            network.caption_head = nn.Parameter(head.detach())
        else:
            decoder.resblocks = decoder.resblocks[: self.layers[-1] + 1]
            decoder.cross_attn = decoder.cross_attn[: self.layers[-1] + 1]

    @property
    def num_layers(self) -> int:
        """Layers that are read, times the heads that are kept."""
        return len(self.layer_names)

    @property
    def layer_names(self) -> list[str]:
        """Such as '3', or '3.h2' for a head that is kept."""
        return self.heads.names(self.layers)

    @property
    def feature_dims(self) -> int:
        """Width of the patch tokens; for similarities, of the joint space."""
        network: Any = self.network
        if self.reading == 'similarity':
            return network.visual.output_dim
        return network.visual.conv1.out_channels

    # -- texts -------------------------------------------------------------------------
    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Run the text tower and find the rows of the words.

        Raises:
            ValueError: If words are not found among the tokens of their prompt, or no
                row before them could predict them.
        """
        network: Any = self.network
        shorten = self.text_source == 'captions'
        texts, spans = locate(self.tokenizer, prompts, shorten)
        shift = int(self.token_row == 'predicts')
        if shift and self.reading == 'attention':
            for prompt, span in zip(prompts, spans):
                if span.start == 1 and not shorten:
                    raise ValueError(
                        "teacher.token_row='predicts' needs a word before the class "
                        f'name in the prompt {prompt.text!r} (teacher.template): only '
                        'the start token could predict it'
                    )
        device = network.text.positional_embedding.device
        tokens = self.tokenizer(texts or [''])  # no tower takes an empty batch
        chunks = tokens.to(device).split(TEXTS_PER_PASS)
        encoded = [network.text(chunk) for chunk in chunks]
        latents, states = (torch.cat(part)[: len(texts)] for part in zip(*encoded))
        table = dict(latents=F.normalize(latents.float(), dim=-1))
        if self.reading == 'similarity':
            return table
        # later rows cannot change earlier ones in a causal decoder: cut them off
        stop = max((span.stop for span in spans), default=0)
        rows, weights = row_table(spans, shift)
        table.update(
            embeds=states[:, :stop].clone(),
            rows=rows.to(device),
            weights=weights.to(device),
        )
        if self.reading == 'gradient':
            table['said'] = tokens[: len(texts)].gather(1, rows + 1).to(device)
        return table

    def merge_prompts(
        self, prompts: dict[str, Tensor], rows: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Average the embeddings of a class's prompts, where only they are compared."""
        if self.reading != 'similarity':
            return prompts, rows
        merged = self._class_latents(prompts['latents'], rows)
        return dict(latents=merged), torch.arange(len(merged))

    def _class_latents(self, latents: Tensor, rows: Tensor) -> Tensor:
        """Mean direction of the prompts of each class, (T, E)."""
        total = latents.new_zeros(self.num_prompted, latents.shape[1])
        return F.normalize(total.index_add(0, rows.to(latents.device), latents), dim=-1)

    # -- images ------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Tensor) -> CoCaImages:
        """Run the image tower and, but for similarities, the pooler."""
        network: Any = self.network
        visual, last = network.visual, len(self.tower.blocks) - 1
        similar = self.reading == 'similarity'
        wanted = set(self.layers) if similar else {last}
        pooled = not similar or self.wants_scores
        if pooled:
            wanted.add(last)
        tokens, prefix, _ = self.tower.intermediates(images, wanted)
        latent, embeds, mixing = None, tokens[max(wanted)], None
        modules = [] if visual.attn_pool is None else [visual.attn_pool.attn]
        if pooled:
            with capture_attention(modules) as records:
                latent, embeds = visual._pool(tokens[last])
            if visual.proj is not None:
                latent = latent @ visual.proj
            latent = F.normalize(latent.float().reshape(len(images), -1), dim=-1)
        with torch.autocast(images.device.type, enabled=False):
            if similar:
                stacked = torch.stack([tokens[i][:, prefix:] for i in self.layers], 1)
                patches = alone_in_joint_space(visual, stacked)
            elif modules:
                (record,) = records
                assert record.key is not None
                patches = record.key[:, prefix:].float()
                mixing = record.weights().mean(1)[..., prefix:]
                # the first query is the contrastive one, unless that has a pooler of
                # its own
                mixing = mixing[:, mixing.shape[1] - embeds.shape[1] :]
            else:
                patches = embeds[:, -self.grid_size[0] * self.grid_size[1] :].float()
            dense = self._dense(tokens, prefix, max(wanted))
        return CoCaImages(patches, latent, tokens[max(wanted)], embeds, mixing, dense)

    def _dense(
        self, tokens: dict[int, Tensor], prefix: int, last: int
    ) -> Tensor | None:
        """The wanted tokens: of blocks that are read, else of the last one."""
        if self.wants_tokens is None:
            return None
        network: Any = self.network
        layers = self.layers if self.reading == 'similarity' else (last,)
        stacked = torch.stack([tokens[i][:, prefix:] for i in layers], 1)
        if self.wants_tokens == 'tower':
            return stacked.float()
        return alone_in_joint_space(network.visual, stacked)

    def dense_tokens(self, images: CoCaImages) -> Tensor | None:
        """Patches of the image tower; pooler and decoder take no part in them."""
        return images.dense

    def class_embeds(self) -> Tensor:
        """Embeddings of the classes, averaged over their prompts."""
        return self._class_latents(self.texts['latents'].float(), self._rows)

    def score(self, images: CoCaImages, prompts: dict[str, Tensor]) -> Tensor | None:
        """Softmax over the classes of cosines times the logit scale, (B, P).

        A prompt's score is that of its class, whose prompts are averaged.
        """
        if images.latent is None or not self.wants_scores:
            return None
        network: Any = self.network
        with torch.autocast(images.latent.device.type, enabled=False):
            classes = self._class_latents(prompts['latents'].float(), self._rows)
            scale = network.logit_scale.exp().float()
            logits = images.latent.float() @ classes.T * scale
        return logits.softmax(-1)[:, self._rows.to(logits.device)]

    # -- readings ----------------------------------------------------------------------
    @torch.no_grad()
    def read(
        self,
        images: CoCaImages,
        prompts: dict[str, Tensor],
        pairs: tuple[Tensor, Tensor],
    ) -> Reading:
        """Maps of (image, prompt) pairs; see :class:`PromptTeacher`."""
        size = PAIRS_PER_PASS
        if self.reading == 'gradient':
            size = GRADIENT_PAIRS_PER_PASS
        if not len(pairs[0]):  # not every network takes an empty batch
            shape = (0, self.num_layers, self.grid_size[0] * self.grid_size[1])
            maps = images.patches.new_zeros(shape)
            features = maps.new_zeros(*shape[:2], self.feature_dims)
            return Reading(maps, maps.sum(-1), features)
        chunks = zip(pairs[0].split(size), pairs[1].split(size))
        readings = [self._read_chunk(images, prompts, *chunk) for chunk in chunks]
        return Reading(*(torch.cat(part) for part in zip(*readings)))

    def _read_chunk(
        self,
        images: CoCaImages,
        prompts: dict[str, Tensor],
        image: Tensor,
        text: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, log masses and features of a few pairs."""
        own = {name: table[text] for name, table in prompts.items()}
        patches = images.patches[image]
        if self.reading == 'similarity':
            with torch.autocast(image.device.type, enabled=False):
                latents = F.normalize(own['latents'].float(), dim=-1)
                unit = F.normalize(patches, dim=-1)
                logits = torch.einsum('mlnc,mc->mln', unit, latents) / self.temperature
                log_mass = logits.logsumexp(-1)
                maps = (logits - log_mass[..., None]).exp()
                features = (maps[..., None, :] @ patches).squeeze(-2)
            return maps, log_mass, features
        network: Any = self.network
        embeds = images.embeds[image]
        if self.reading == 'gradient':
            raw, mixing = caption_relevance(
                network, self.layers, self.heads, images.tokens[image], embeds, own
            )
        else:
            decoder = network.text_decoder
            raw = decoder_attention(decoder, self.layers, self.heads, embeds, own)
            mixing = None if images.mixing is None else images.mixing[image]
        with torch.autocast(image.device.type, enabled=False):
            if mixing is not None:
                raw = raw @ mixing
            raw = raw[..., -patches.shape[1] :]
            maps = normalise_maps(raw)
            log_mass = raw.sum(-1).clamp(min=1e-30).log()
            return maps, log_mass, maps @ patches
