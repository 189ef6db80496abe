"""Attention as a part of the autograd graph, for readings that weight it by gradients.

The idea of weighting attention by its gradient is that of Chefer et al., "Generic
Attention-model Explainability" (ICCV 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


@dataclass
class ExplicitRecord:
    """The maps that an attention module formed.

    Attributes:
        module: The attention module.
        probs: (B, heads, Lq, Lk), at least float32, rows sum to 1; its gradients can
            be asked for. None until the module has run.
    """

    module: nn.Module
    probs: Tensor | None = None

    def keep(self, probs: Tensor) -> Tensor:
        """Take maps into the record and into the autograd graph."""
        if self.probs is not None:
            raise RuntimeError(
                'an attention module formed maps twice within one explicit pass'
            )
        if probs.ndim != 4:
            raise RuntimeError(
                f'{type(self.module).__name__} formed attention of shape '
                f'{tuple(probs.shape)}, not (batch, heads, queries, keys)'
            )
        if not probs.requires_grad:
            probs.requires_grad_()
        self.probs = probs
        return probs


@contextmanager
def explicit_attention(
    modules: Sequence[nn.Module],
) -> Iterator[list[ExplicitRecord]]:
    """Let attention modules form their maps, and form them within the graph.

    Inside the body, ``softmax(QK^T + mask) V`` takes the place of the fused kernels
    that these modules call, in float32 outside autocast. Everything else stays the
    modules' own: projections, norms, rotary positions, gates, masks. So this works for
    whatever calls ``torch.nn.functional.scaled_dot_product_attention``
    (open_clip 4, timm) or a softmax (timm without fused attention, BERT), and for
    ``torch.nn.MultiheadAttention``. The network's output is the same up to rounding.

    Gradients are on within the body, whatever the caller has switched off, and
    parameters may all be frozen: the graph begins at the maps of the first module.
    ``torch.autograd.grad(score.sum(), [r.probs for r in records])`` gives the
    gradients. What enters the modules is copied if it is an inference tensor; what else
    enters the network should go through :func:`ordinary`.

    Memory: 4 * B * heads * Lq * Lk bytes per module for the maps, about three times
    that while gradients are taken, and all activations behind the first module, as in
    training. They are freed with the records and the score.

    Args:
        modules: Attention modules in eval mode, each of which must run once.

    Yields:
        One record per module, filled while it runs.

    Raises:
        RuntimeError: If a module forms no maps or forms them twice, in a way that is
            not known, or with dropout.
    """
    records = [ExplicitRecord(module) for module in modules]
    mode = _ExplicitMode()
    handles = []
    for record in records:
        module = record.module
        handles += [
            module.register_forward_pre_hook(
                partial(_enter, mode, record), with_kwargs=True
            ),
            module.register_forward_hook(partial(_leave, mode), always_call=True),
        ]
    try:
        with torch.inference_mode(False), torch.enable_grad(), mode:
            yield records
    finally:
        for handle in handles:
            handle.remove()
    silent = [index for index, record in enumerate(records) if record.probs is None]
    if silent:
        raise RuntimeError(
            f'attention modules {silent} of {len(records)} did not run, or formed no '
            'maps; this version of the network calls something else'
        )


def ordinary(value: Any) -> Any:
    """Copy an inference tensor, which autograd could not keep; else do nothing.

    It has to be called outside inference mode, as within :func:`explicit_attention`.
    """
    inference = isinstance(value, Tensor) and value.is_inference()
    return value.clone() if inference else value


def relevance(probs: Tensor, grads: Tensor, heads: str = 'mean') -> Tensor:
    """Weight attention by what raises the score.

    Args:
        probs: Maps, (B, h, Lq, Lk).
        grads: Gradients of the score with respect to them.
        heads: ``'mean'`` over heads, or ``'keep'``.

    Returns:
        The positive part of their product, (B, Lq, Lk) or (B, h, Lq, Lk).

    Raises:
        ValueError: If ``heads`` is something else.
    """
    if heads not in ('mean', 'keep'):
        raise ValueError(f"heads={heads!r} is neither 'mean' nor 'keep'")
    weighted = (probs.detach() * grads).clamp(min=0)
    return weighted if heads == 'keep' else weighted.mean(1)


class _ExplicitMode(TorchFunctionMode):
    """Replaces what forms attention while ``record`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.record: ExplicitRecord | None = None

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.record is None:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _dot_product(self.record.keep, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            return _multi_head(self.record.keep, *args, **kwargs)
        if func in _SOFTMAX:
            logits, *rest = args
            probs = func(_widened(logits), *rest, **kwargs)
            return self.record.keep(probs).to(logits.dtype)
        return func(*args, **kwargs)


def _enter(
    mode: _ExplicitMode,
    record: ExplicitRecord,
    module: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook: the record's module forms attention from now on."""
    mode.record = record
    return tuple(map(ordinary, args)), {k: ordinary(v) for k, v in kwargs.items()}


def _leave(mode: _ExplicitMode, module: nn.Module, args: tuple, output: Any) -> None:
    """Forward hook: it has returned, or failed."""
    mode.record = None


def _widened(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _attend(
    keep: Callable[[Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Attention of (B, h, L, d) tensors, its maps kept; in the dtype of ``v``."""
    with torch.autocast(q.device.type, enabled=False):
        logits = _widened(q) @ _widened(k).transpose(-1, -2) * scale
        if bias is not None:
            logits = logits + bias.to(logits.dtype)
        return (keep(logits.softmax(-1)) @ _widened(v)).to(v.dtype)


def _dot_product(
    keep: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The same as torch's function, with its arguments."""
    _check_dropout(dropout_p)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    if is_causal:
        attn_mask = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
        attn_mask = attn_mask.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # True where a key takes part
        attn_mask = _masked_bias(~attn_mask)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    return _attend(keep, query, key, value, attn_mask, scale)


def _multi_head(
    keep: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The same as torch's function, with its arguments; (L, B, C) in and out.

    ``is_causal`` only tells torch that ``attn_mask`` is causal, which it is anyway.
    """
    if bias_k is not None or bias_v is not None or add_zero_attn:
        raise RuntimeError('attention with add_bias_kv or add_zero_attn is not known')
    if static_k is not None or static_v is not None or query.ndim != 3:
        raise RuntimeError('attention without a batch or with given keys is not known')
    _check_dropout(dropout_p if training else 0.0)
    weights: Sequence[Tensor | None] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases: Sequence[Tensor | None] = (None,) * 3
    if in_proj_bias is not None:
        biases = in_proj_bias.chunk(3)
    q, k, v = (
        # (L, B, C) to (B, heads, L, d)
        F.linear(x, weight, bias)  # type: ignore[arg-type]
        .unflatten(-1, (num_heads, -1))
        .permute(1, 2, 0, 3)
        for x, weight, bias in zip((query, key, value), weights, biases)
    )
    bias = None
    if attn_mask is not None:
        bias = _masked_bias(attn_mask)
        if bias.ndim == 3:
            bias = bias.unflatten(0, (-1, num_heads))
    if key_padding_mask is not None:
        padding = _masked_bias(key_padding_mask)[:, None, None]
        bias = padding if bias is None else bias + padding
    maps: list[Tensor] = []

    def keep_also(probs: Tensor) -> Tensor:
        maps.append(keep(probs))
        return maps[0]

    out = _attend(keep_also, q, k, v, bias, 1 / math.sqrt(q.shape[-1]))
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if not need_weights:
        return out, None
    return out, maps[0].mean(1) if average_attn_weights else maps[0]


def _masked_bias(mask: Tensor) -> Tensor:
    """Turn a mask, True where nothing is to be seen, into what is added to logits."""
    if mask.dtype != torch.bool:
        return mask
    bias = torch.zeros(mask.shape, device=mask.device)
    return bias.masked_fill(mask, float('-inf'))


def _check_dropout(probability: float) -> None:
    if probability > 0:
        raise RuntimeError(
            f'attention drops {probability:.0%} of its maps; put the network into eval '
            'mode'
        )
