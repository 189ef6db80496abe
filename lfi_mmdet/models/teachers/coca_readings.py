"""How maps are read off a CoCa: parts that hold no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention_capture import capture_attention, check_attention, normed, value_path
from .attention_gradient import explicit_attention, ordinary, relevance
from .heads import HeadChoice
from .open_clip_loader import vision_transformer


@dataclass
class CoCaImages:
    """Images as :class:`.coca.CoCaTeacher` sees them.

    Attributes:
        patches: What features are averages of, float32: (B, N, C), or, for
            similarities, (B, L, N, E) in the joint space.
        latent: Unit vectors of the images in the joint space, (B, E), float32.
        tokens: After the last block of the image tower, (B, 1 + N, C).
        embeds: What the decoder attends to, (B, Q, D).
        mixing: How ``embeds`` are mixed from the patches, (B, Q, N), float32; None if
            they are the patches.
        dense: The patches again, of the kind that is wanted, (B, L, N, C); None if
            none is.
    """

    patches: Tensor
    latent: Tensor | None
    tokens: Tensor
    embeds: Tensor
    mixing: Tensor | None = None
    dense: Tensor | None = None


def check_coca(network: Any, model: str) -> None:
    """Check that all parts that are read are there.

    Raises:
        ValueError: If the model is no CoCa, or its towers are not open_clip's own.
        TypeError: If its attention cannot be read.
    """
    from open_clip import CoCa
    from open_clip.transformer import MultimodalTransformer, TextTransformer

    if not isinstance(network, CoCa):
        raise ValueError(
            f'teacher.model={model!r} is a {type(network).__name__} without a text '
            'decoder; CoCaTeacher takes coca_* models, CLIPTeacher takes this one'
        )
    visual = vision_transformer(network, model)
    for part, known in (
        (network.text, TextTransformer),
        (network.text_decoder, MultimodalTransformer),
    ):
        if not isinstance(part, known):
            raise ValueError(
                f'teacher.model={model!r} has the text tower {type(part).__name__}; '
                f"only open_clip's own {known.__name__}, with its BPE tokens, is "
                'supported'
            )
    for block in network.text_decoder.cross_attn:
        check_attention(block.attn)
    for pooler in poolers(visual):
        check_attention(pooler.attn)


def poolers(visual: Any) -> list[Any]:
    """The pooler for the decoder and the contrastive one, where there are any."""
    # open_clip 3 has no second attribute without a first pooler
    names = ('attn_pool', 'attn_pool_contrastive')
    found = [getattr(visual, name, None) for name in names]
    return [pooler for pooler in found if pooler is not None]


def alone_in_joint_space(visual: Any, tokens: Tensor) -> Tensor:
    """Bring patches into the joint space, each as though it were the whole image.

    Each passes norms, pooler and projection alone. All attention of the pooler is
    then its own, so that no query matters, the contrastive one included.

    Args:
        visual: Image tower of a CoCa.
        tokens: (..., C), after a block of the tower.

    Returns:
        (..., E), float32.
    """
    x, pools = tokens, poolers(visual)
    if len(pools) < 2:
        for pool in pools:
            x = value_path(pool.attn, normed(pool.ln_k, x))
        x = normed(visual.ln_post, x)
    else:
        x = normed(visual.ln_post, x)
        # only a cascade sends what it pools contrastively through both
        for pool in pools if visual.attn_pool_type == 'cascade' else pools[1:]:
            x = value_path(pool.attn, normed(pool.ln_k, x))
    return x.float() if visual.proj is None else x.float() @ visual.proj.float()


def decoder_attention(
    decoder: Any,
    layers: tuple[int, ...],
    heads: HeadChoice,
    embeds: Tensor,
    prompts: dict[str, Tensor],
) -> Tensor:
    """Cross-attention of the words in (image, prompt) pairs.

    Args:
        decoder: Text decoder of a CoCa.
        layers: Layers that are read.
        heads: Heads that are averaged or kept.
        embeds: What the decoder attends to, (M, Q, C).
        prompts: ``embeds`` (M, S, C), ``rows`` and ``weights`` (M, R).

    Returns:
        (M, L, Q), float32.
    """
    modules = [decoder.cross_attn[layer].attn for layer in layers]
    with capture_attention(modules) as records:
        decoder(embeds, prompts['embeds'].to(embeds.dtype))
    maps = [heads(record.weights(prompts['rows'])) for record in records]
    return _mean_rows(torch.cat(maps, 1), prompts['weights'])


def caption_relevance(
    network: Any,
    layers: tuple[int, ...],
    heads: HeadChoice,
    tokens: Tensor,
    embeds: Tensor,
    prompts: dict[str, Tensor],
) -> tuple[Tensor, Tensor | None]:
    """Attention of (image, prompt) pairs, weighted by its gradient.

    The score is the log-likelihood of the words in their prompt, given the image.

    Args:
        network: A CoCa whose ``text_decoder.text_projection`` lies apart, as
            ``caption_head``.
        layers: See :func:`decoder_attention`.
        heads: See :func:`decoder_attention`.
        tokens: After the last block of the image tower, (M, 1 + N, C).
        embeds: What the decoder attends to, (M, Q, C); not used with a pooler, which
            has to become a part of the graph of each pair.
        prompts: ``embeds`` (M, S, C); ``rows`` that predict the words, their
            ``weights``, and what they have to say, ``said``, (M, R).

    Returns:
        That of the decoder, (M, L, Q), and that of the pooler, (M, Q, 1 + N), or None
        if there is none; float32.
    """
    visual, decoder = network.visual, network.text_decoder
    modules = [decoder.cross_attn[layer].attn for layer in layers]
    pooled = visual.attn_pool is not None
    if pooled:
        modules.insert(0, visual.attn_pool.attn)
    with explicit_attention(modules) as records:
        tokens, embeds = ordinary(tokens), ordinary(embeds)
        prompts = {name: ordinary(table) for name, table in prompts.items()}
        if pooled:
            embeds = visual._pool(tokens)[1]
        states = decoder(embeds, prompts['embeds'].to(embeds.dtype))
        score = _log_likelihood(states, network.caption_head, prompts)
        maps = [record.probs for record in records if record.probs is not None]
        grads = torch.autograd.grad(score, maps)
    weighted = [relevance(p, g, heads='keep') for p, g in zip(maps, grads)]
    pooling = None
    if pooled:
        pooling = weighted.pop(0).mean(1)
        # the first query is the contrastive one, unless that has a pooler of its own
        pooling = pooling[:, pooling.shape[1] - embeds.shape[1] :]
    index = prompts['rows'][:, None, :, None]
    chosen = [
        heads(maps.gather(2, index.expand(-1, maps.shape[1], -1, maps.shape[3])))
        for maps in weighted
    ]
    return _mean_rows(torch.cat(chosen, 1), prompts['weights']), pooling


def _log_likelihood(
    states: Tensor, head: nn.Parameter, prompts: dict[str, Tensor]
) -> Tensor:
    """Log-likelihood of the words, summed over all pairs."""
    # only the rows that say them meet the vocabulary, which is large
    rows = prompts['rows'][:, :, None].expand(-1, -1, states.shape[-1])
    logits = (states.gather(1, rows).to(head.dtype) @ head).float()
    said = logits.log_softmax(-1).gather(2, prompts['said'][:, :, None])[..., 0]
    return (said * (prompts['weights'] > 0)).sum()


def _mean_rows(maps: Tensor, weights: Tensor) -> Tensor:
    """Average (M, L, R, Q) over the rows of each prompt, to (M, L, Q)."""
    return (maps * weights[:, None, :, None].float()).sum(2)
