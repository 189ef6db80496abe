"""Read attention maps off modules that never form them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class AttentionRecord:
    """What one attention module was given in one forward pass.

    Attributes:
        module: The attention module.
        query: (B, Lq, C), input of the query projection; None until it has run.
        key: (B, Lk, Ck), input of the key projection; None until it has run.
    """

    module: nn.MultiheadAttention
    query: Tensor | None = None
    key: Tensor | None = None

    def weights(self, rows: Tensor | None = None) -> Tensor:
        """Recompute the attention maps, in float32.

        Args:
            rows: Long (B, R), the queries whose maps are wanted; None for all.

        Returns:
            (B, heads, Lq or R, Lk), rows sum to 1.
        """
        assert self.query is not None and self.key is not None
        query = self.query
        if rows is not None:
            query = query.gather(1, rows[:, :, None].expand(-1, -1, query.shape[-1]))
        return attention_weights(self.module, query, self.key)


def attention_weights(
    attn: nn.MultiheadAttention, query: Tensor, key: Tensor
) -> Tensor:
    """Compute softmax(QK^T / sqrt(d)) of an attention module, without a mask.

    Args:
        attn: Module with one input projection or with separate ones.
        query: (B, Lq, C).
        key: (B, Lk, Ck).

    Returns:
        (B, heads, Lq, Lk), float32 whatever the dtype of the module and autocast.
    """
    if attn.in_proj_weight is not None:
        q_weight, k_weight, _ = attn.in_proj_weight.chunk(3)
    else:
        q_weight, k_weight = attn.q_proj_weight, attn.k_proj_weight
    q_bias = k_bias = None
    if attn.in_proj_bias is not None:
        q_bias, k_bias, _ = attn.in_proj_bias.float().chunk(3)
    with torch.autocast(query.device.type, enabled=False):
        q = F.linear(query.float(), q_weight.float(), q_bias)
        k = F.linear(key.float(), k_weight.float(), k_bias)
    return head_softmax(q, k, attn.num_heads)


def head_softmax(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """Compute softmax(QK^T / sqrt(d)) of each head, in float32 outside autocast.

    Args:
        q: (B, Lq, C), projected.
        k: (B, Lk, C), projected.
        num_heads: Number of heads; d = C / num_heads.

    Returns:
        (B, num_heads, Lq, Lk).
    """
    with torch.autocast(q.device.type, enabled=False):
        q = q.float().unflatten(-1, (num_heads, -1)).transpose(1, 2)
        k = k.float().unflatten(-1, (num_heads, -1)).transpose(1, 2)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


@contextmanager
def capture_attention(modules: Sequence[nn.Module]) -> Iterator[list[AttentionRecord]]:
    """Record the inputs of attention modules while the body runs.

    The modules run untouched (and fused); only what enters them is kept, and the
    maps are recomputed on demand. So this depends on how torch's attention stores
    its weights, not on how the surrounding network calls it.

    Args:
        modules: ``torch.nn.MultiheadAttention`` modules, unmasked, each of which
            must run exactly once.

    Yields:
        One record per module, filled while it runs.

    Raises:
        TypeError: If a module is of another type.
        RuntimeError: If a module has not run when the body ends, runs twice or gets
            a mask.
    """
    for module in modules:
        check_attention(module)
    records = [AttentionRecord(module) for module in modules]  # type: ignore[arg-type]
    handles = [
        record.module.register_forward_pre_hook(
            partial(_keep_inputs, record), with_kwargs=True
        )
        for record in records
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
    silent = [index for index, record in enumerate(records) if record.query is None]
    if silent:
        raise RuntimeError(
            f'attention modules {silent} of {len(records)} did not run, so there are '
            'no maps to read; this version of the network calls something else'
        )


def check_attention(module: nn.Module) -> None:
    """Check that the maps of a module can be recomputed.

    Raises:
        TypeError: If it is no plain ``torch.nn.MultiheadAttention``.
    """
    if not isinstance(module, nn.MultiheadAttention):
        kind = f'{type(module).__module__}.{type(module).__qualname__}'
        raise TypeError(
            f'cannot read attention maps off a {kind}, only off a '
            'torch.nn.MultiheadAttention (as open_clip_torch 2.32 to 3.x builds by '
            'default)'
        )
    if module.bias_k is not None or module.add_zero_attn:
        raise TypeError(
            'cannot read attention maps off a torch.nn.MultiheadAttention with '
            'add_bias_kv or add_zero_attn'
        )


def _keep_inputs(
    record: AttentionRecord, module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Forward pre-hook: keep query and key, batch first."""
    if record.query is not None:
        raise RuntimeError('an attention module ran twice within one capture')
    names = ('query', 'key', 'value', 'key_padding_mask', 'need_weights', 'attn_mask')
    inputs = dict(zip(names, args), **kwargs)
    for name in ('key_padding_mask', 'attn_mask'):
        if inputs.get(name) is not None:
            raise RuntimeError(
                f'an attention module got {name}; only unmasked attention is recomputed'
            )
    query, key = inputs['query'].detach(), inputs['key'].detach()
    if not record.module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    record.query, record.key = query, key
