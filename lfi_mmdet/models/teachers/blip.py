"""BLIP as a teacher: cross-attention from every text layer to the patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .attention_capture import head_softmax
from .attention_gradient import explicit_attention, ordinary, relevance
from .blip_loader import load_blip, load_blip_tokenizer
from .clip import normalise_maps
from .heads import HeadChoice
from .layers import resolve_layers
from .prompted import PromptTeacher, Reading
from .prompts import Prompt, shorten

#: Bounds the memory of one pass of the text tower
PAIRS_PER_PASS = 64
#: What BERT's attention is called with, in order
_ARGUMENTS = (
    'hidden_states',
    'attention_mask',
    'head_mask',
    'encoder_hidden_states',
)
#: As in BLIP's own training
MAX_TOKENS = 35


@dataclass
class CrossAttention:
    """What went through the cross-attention of one text layer.

    Attributes:
        module: BERT's attention module.
        hidden: Text side, (M, S, C).
        patches: Image side, (M, 1 + N, C).
    """

    module: Any
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    patches: Tensor = field(default_factory=lambda: torch.empty(0))


@MODELS.register_module()
class BLIPTeacher(PromptTeacher):
    """BLIP of mmpretrain; which patches each word attends to, per text layer.

    The text tower reads the prompt together with the image, as for image-text
    matching. ``reading='attention'``: cross-attention of the rows of the class name's
    tokens, straight to the patches, CLS column left out, rows normalised.
    ``'gradient'``: the same attention times the positive part of its gradient for the
    matching score (as ALBEF and BLIP show theirs); it takes a backward pass and is
    meant for caches. The score is read off the first token, so that the last layer
    has no gradient for other words, and its maps are uniform. ``'similarity'``:
    softmax over the patches of the cosine between patch and text in the space of the
    contrastive loss, one layer.

    Args:
        pretrained: Path or address of mmpretrain's BLIP retrieval weights, or None
            for random ones, see :func:`load_blip`.
        arch: See :class:`BLIPNetwork`.
        image_size: Side, or (height, width), of the input in pixels.
        layers: ``'all'`` or indices of the text layers to read.
        heads: See :class:`HeadChoice`; with ``'keep'`` there are layers x heads layers.
        temperature: Softness of the ``'similarity'`` maps, see :class:`CLIPTeacher`.
        template: See :class:`PromptTeacher`; maps of several are averaged.
        tokenizer: Folder with ``vocab.txt``, see :func:`load_blip_tokenizer`.
        class_names: Classes; None takes them from the dataset.
        **common: For :class:`PromptTeacher` and :class:`FrozenTeacher`.
    """

    READINGS = ('attention', 'gradient', 'similarity')

    def __init__(
        self,
        pretrained: str | None = None,
        arch: str | dict[str, Any] = 'base',
        image_size: int | Sequence[int] = 384,
        layers: str | Sequence[int] = 'all',
        heads: str | Sequence[int] = 'mean',
        temperature: float = 0.07,
        template: str | Sequence[str] = 'a photo of a {}.',
        tokenizer: str | None = None,
        class_names: Sequence[str] | None = None,
        **common: Any,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f'teacher.temperature={temperature} must be above 0')
        size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
        network = load_blip(arch, pretrained, (size[0], size[1]))
        super().__init__(view=dict(size=size), template=template, **common)
        depth = len(network.layers)
        self.layers = resolve_layers(layers, depth, 'text layers')
        self.heads = HeadChoice(
            heads, self._attention_of(network, 0).num_attention_heads
        )
        # a similarity is that of a whole text
        self.IN_CONTEXT = self.reading != 'similarity'
        self.temperature = temperature
        self.tokenizer = load_blip_tokenizer(tokenizer)
        vocabulary = network.text_backbone.embeddings.word_embeddings.num_embeddings
        if len(self.tokenizer) != vocabulary:
            raise ValueError(
                f'the tokenizer has {len(self.tokenizer)} tokens, but BLIP '
                f'{vocabulary}: teacher.tokenizer={tokenizer!r} is truncated, or '
                'belongs to another model'
            )
        rows, cols = network.vision_backbone.patch_resolution
        self.grid_size = (int(rows), int(cols))
        self.embed_dims: int = network.vision_backbone.embed_dims
        self.freeze(network)
        if class_names is not None:
            self.set_class_names(class_names)

    @staticmethod
    def _attention_of(network: Any, layer: int) -> Any:
        return network.layers[layer].crossattention.self

    @property
    def num_layers(self) -> int:
        """Text layers that are read, times the heads that are kept."""
        return len(self.layer_names)

    @property
    def layer_names(self) -> list[str]:
        """Such as '3', or '3.h2' for a head that is kept."""
        if self.reading == 'similarity':
            return ['contrastive']
        return self.heads.names(self.layers)

    @property
    def feature_dims(self) -> int:
        """Width of the patch tokens."""
        return self.embed_dims

    # -- texts -------------------------------------------------------------------------
    def encode_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Tokenise, find the words, and run the text tower alone for similarities.

        Raises:
            ValueError: If words are not found, because the text is too long.
        """
        network: Any = self.network
        device = network.vision_neck.weight.device
        if not prompts:
            empty = torch.zeros(0, 1, dtype=torch.long, device=device)
            none = empty.new_zeros(0, network.text_neck.out_features).float()
            return dict(ids=empty, mask=empty, weights=empty.float(), embeds=none)
        if self.text_source == 'captions':
            prompts = [
                shorten(
                    one, lambda text: len(self.tokenizer(text).input_ids), MAX_TOKENS
                )
                for one in prompts
            ]
        encoded = self.tokenizer(
            [prompt.text for prompt in prompts],
            padding='longest',
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors='pt',
        )
        weights = torch.zeros(encoded.input_ids.shape)
        for index, prompt in enumerate(prompts):
            found = {
                encoded.char_to_token(index, char)
                for char in range(prompt.start, prompt.stop)
                if not prompt.text[char].isspace()
            }
            if not found or None in found:
                raise ValueError(
                    f'the tokens of {prompt.words!r} are not found in the prompt '
                    f'{prompt.text!r}, which is cut at {MAX_TOKENS} tokens'
                )
            rows = [row for row in found if row is not None]
            weights[index, rows] = 1 / len(rows)
        table = dict(
            ids=encoded.input_ids.to(device),
            mask=encoded.attention_mask.to(device),
            weights=weights.to(device),
        )
        if self.reading == 'similarity':
            with torch.no_grad():
                states = network.text_backbone(
                    table['ids'],
                    attention_mask=table['mask'],
                    return_dict=True,
                    mode='text',
                ).last_hidden_state[:, 0]
                table['embeds'] = F.normalize(network.text_neck(states).float(), dim=-1)
        return table

    # -- images ------------------------------------------------------------------------
    def encode_images(self, images: Tensor) -> Tensor:
        """All tokens of the vision tower, CLS first, (B, 1 + N, C)."""
        network: Any = self.network
        return network.vision_backbone(images.to(network.vision_neck.weight.dtype))[0]

    def score(self, images: Tensor, prompts: dict[str, Tensor]) -> Tensor | None:
        """Probability of image-text matching of every pair, if it is asked for."""
        if not self.wants_scores:
            return None
        count = len(prompts['ids'])
        pairs = torch.cartesian_prod(
            torch.arange(len(images), device=images.device),
            torch.arange(count, device=images.device),
        )
        logits = [
            self._match(images[chunk[:, 0]], prompts, chunk[:, 1])
            for chunk in pairs.split(PAIRS_PER_PASS)
        ]
        return torch.cat(logits).softmax(-1)[:, 1].view(len(images), count)

    def _match(self, tokens: Tensor, prompts: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Run pairs through the text tower; logits of matching, (M, 2), float32."""
        network: Any = self.network
        words = prompts['ids'][ids].clone()
        words[:, 0] = self.tokenizer.additional_special_tokens_ids[0]  # [ENC]
        states = network.text_backbone(
            words,
            attention_mask=prompts['mask'][ids],
            encoder_hidden_states=tokens,
            return_dict=True,
        ).last_hidden_state
        return network.multimodal_head['fc'](states[:, 0]).float()

    # -- readings ----------------------------------------------------------------------
    def read(
        self,
        images: Tensor,
        prompts: dict[str, Tensor],
        pairs: tuple[Tensor, Tensor],
    ) -> Reading:
        """Maps of (image, prompt) pairs; see :class:`PromptTeacher`."""
        if self.reading == 'similarity':
            return self._similarities(images, prompts, pairs)
        chunks = zip(pairs[0].split(PAIRS_PER_PASS), pairs[1].split(PAIRS_PER_PASS))
        gradient = self.reading == 'gradient'
        raw = torch.cat(
            [
                (self._gradients if gradient else self._attention)(
                    images[image], prompts, text
                )
                for image, text in (chunks if len(pairs[0]) else ())
            ]
            or [images.new_zeros(0, self.num_layers, images.shape[1]).float()]
        )[..., 1:]
        with torch.autocast(images.device.type, enabled=False):
            maps = normalise_maps(raw)
            return Reading(
                maps=maps,
                log_mass=raw.sum(-1).clamp(min=1e-30).log(),
                features=_mean_patches(maps, images, pairs[0]),
            )

    def _similarities(
        self, images: Tensor, prompts: dict[str, Tensor], pairs: tuple[Tensor, Tensor]
    ) -> Reading:
        network: Any = self.network
        patches = F.normalize(network.vision_neck(images[:, 1:]).float(), dim=-1)
        with torch.autocast(images.device.type, enabled=False):
            cosines = torch.einsum('bnc,pc->bpn', patches, prompts['embeds'].float())
            logits = cosines[pairs][:, None] / self.temperature
            maps = logits.softmax(-1)
            features = _mean_patches(maps, images, pairs[0])
            return Reading(maps, logits.logsumexp(-1), features)

    def _of_words(self, maps: Tensor, weights: Tensor) -> Tensor:
        """Average heads, and the rows of the words: (M, h, S, N) to (M, kept, N)."""
        return (self.heads(maps) * weights[:, None, :, None]).sum(2)

    def _attention(
        self, tokens: Tensor, prompts: dict[str, Tensor], ids: Tensor
    ) -> Tensor:
        """Attention of the words, CLS column included, (M, L, 1 + N)."""
        with self._record() as records:
            self._match(tokens, prompts, ids)
        maps = []
        for record in records:
            module = record.module
            q, k = module.query(record.hidden), module.key(record.patches)
            probs = head_softmax(q, k, module.num_attention_heads)
            maps.append(self._of_words(probs, prompts['weights'][ids]))
        return torch.cat(maps, 1)

    def _gradients(
        self, tokens: Tensor, prompts: dict[str, Tensor], ids: Tensor
    ) -> Tensor:
        """Attention times its positive gradients, (M, L, 1 + N)."""
        modules = [self._attention_of(self.network, layer) for layer in self.layers]
        with explicit_attention(modules) as records:
            score = self._match(ordinary(tokens), prompts, ids)[:, 1].sum()
            probs = [record.probs for record in records if record.probs is not None]
            grads = torch.autograd.grad(score, probs)
        weights = prompts['weights'][ids]
        maps = [
            self._of_words(relevance(p, g, heads='keep'), weights)
            for p, g in zip(probs, grads)
        ]
        return torch.cat(maps, 1)

    @contextmanager
    def _record(self) -> Iterator[list[CrossAttention]]:
        """Keep what goes through the cross-attention of the layers that are read."""
        records = [
            CrossAttention(self._attention_of(self.network, layer))
            for layer in self.layers
        ]
        handles = []
        for record in records:

            def keep(
                module: nn.Module,
                args: tuple,
                kwargs: dict[str, Any],
                record: CrossAttention = record,
            ) -> None:
                inputs = dict(zip(_ARGUMENTS, args), **kwargs)
                record.hidden = inputs['hidden_states']
                record.patches = inputs['encoder_hidden_states']

            hook = record.module.register_forward_pre_hook
            handles.append(hook(keep, with_kwargs=True))
        try:
            yield records
        finally:
            for handle in handles:
                handle.remove()


def _mean_patches(maps: Tensor, images: Tensor, ids: Tensor) -> Tensor:
    """Means of patches (B, 1 + N, C), CLS left out, weighted by maps (M, L, N)."""
    # a few pairs at a time: all would copy the patches of an image for each of them
    chunks = zip(maps.split(PAIRS_PER_PASS), ids.split(PAIRS_PER_PASS))
    return torch.cat([some @ images[image, 1:].float() for some, image in chunks])
