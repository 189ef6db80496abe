"""Read attention maps off modules that never form them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What an attention module may hold: its projections, ...
_PROJECTIONS = {
    *('in_proj_weight', 'in_proj_bias'),
    *('q_proj_weight', 'k_proj_weight', 'v_proj_weight'),
}
#: ... what else shapes its maps, ...
_SHAPING = {'ln_q', 'ln_k', 'logit_scale'}
#: ... and what comes after them
_AFTERWARDS = {'attn_drop', 'head_scale', 'ln_inner', 'out_proj', 'out_drop'}
#: What the inputs may be called
_KEYS, _MASKS = ('key', 'k_x'), ('attn_mask', 'key_padding_mask')


@dataclass
class AttentionRecord:
    """What one attention module was given in one forward pass.

    Attributes:
        module: The attention module.
        query: (B, Lq, C), input of the query projection; None until it has run.
        key: (B, Lk, Ck), input of the key projection; None until it has run.
    """

    module: nn.Module
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


def attention_weights(attn: nn.Module, query: Tensor, key: Tensor) -> Tensor:
    """Compute the softmax of an attention module, without a mask.

    Args:
        attn: Module that :func:`check_attention` accepts.
        query: (B, Lq, C).
        key: (B, Lk, Ck).

    Returns:
        (B, heads, Lq, Lk), float32 whatever the dtype of the module and autocast.
    """
    module: Any = attn
    with torch.autocast(query.device.type, enabled=False):
        q = F.linear(query.float(), *_projection(module, 'q'))
        k = F.linear(key.float(), *_projection(module, 'k'))
        if not _shaping(module):
            return head_softmax(q, k, module.num_heads)
        q, k = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in (q, k))
        if getattr(module, 'logit_scale', None) is not None:  # of cosines
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            # (heads, 1, 1), bounded as in training
            scale = module.logit_scale.float().clamp(max=module.logit_scale_max).exp()
            return (q @ k.transpose(-1, -2) * scale).softmax(-1)
        q, k = normed(module.ln_q, q), normed(module.ln_k, k)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def value_path(attn: nn.Module, value: Tensor) -> Tensor:
    """Compute what attention returns if a query can attend to one key only.

    Whatever the query, the softmax over a single key is 1, so that only the value
    and output projections are left.

    Args:
        attn: Module that :func:`check_attention` accepts.
        value: (..., Cv), the one key of each query.

    Returns:
        (..., C), float32.
    """
    module: Any = attn
    with torch.autocast(value.device.type, enabled=False):
        out = F.linear(value.float(), *_projection(module, 'v'))
        if getattr(module, 'head_scale', None) is not None:
            heads = out.unflatten(-1, (module.num_heads, -1))
            out = (heads * module.head_scale.float().view(-1, 1)).flatten(-2)
        out = normed(getattr(module, 'ln_inner', nn.Identity()), out)
        bias = module.out_proj.bias
        return F.linear(
            out, module.out_proj.weight.float(), None if bias is None else bias.float()
        )


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


def _projection(attn: Any, which: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the projection of ``'q'``, ``'k'`` or ``'v'``, in float32."""
    index = 'qkv'.index(which)
    packed, bias = getattr(attn, 'in_proj_weight', None), attn.in_proj_bias
    if packed is not None:
        weight = packed.chunk(3)[index]
    else:
        weight = getattr(attn, f'{which}_proj_weight')
    return weight.float(), None if bias is None else bias.float().chunk(3)[index]


def _shaping(attn: nn.Module) -> set[str]:
    """What shapes the maps of a module besides its projections."""
    children = {n for n, c in attn.named_children() if not isinstance(c, nn.Identity)}
    owned = {name for name, _ in attn.named_parameters(recurse=False)}
    return (owned | children) & _SHAPING


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Run a norm in the dtype of its weights; the result is float32."""
    dtype = next((p.dtype for p in norm.parameters()), x.dtype)
    return norm(x.to(dtype)).float()


@contextmanager
def capture_attention(modules: Sequence[nn.Module]) -> Iterator[list[AttentionRecord]]:
    """Record the inputs of attention modules while the body runs.

    The modules run untouched (and fused); only what enters them is kept, and the
    maps are recomputed on demand. So this depends on how attention stores its
    weights, not on how the surrounding network calls it.

    Args:
        modules: Attention modules, see :func:`check_attention`, unmasked, each of
            which must run exactly once.

    Yields:
        One record per module, filled while it runs.

    Raises:
        TypeError: If a module is of another type.
        RuntimeError: If a module has not run when the body ends, runs twice or gets
            a mask.
    """
    for module in modules:
        check_attention(module)
    records = [AttentionRecord(module) for module in modules]
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

    Either it is a ``torch.nn.MultiheadAttention``, as open_clip builds it up to 3.x,
    or it has the attributes of the attention that open_clip 4 puts in its place:
    ``num_heads``, projections named as torch names them, and possibly norms of
    queries and keys or cosines with a scale of their own.

    Raises:
        TypeError: If it is anything else, or holds what is not understood.
    """
    kind = f'{type(module).__module__}.{type(module).__qualname__}'
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            raise TypeError(
                f'cannot read attention maps off a {kind} with add_bias_kv or '
                'add_zero_attn'
            )
        return
    has = {n: getattr(module, n, None) is not None for n in sorted(_PROJECTIONS)}
    apart = has['q_proj_weight'] and has['k_proj_weight'] and has['v_proj_weight']
    if not (
        isinstance(getattr(module, 'num_heads', None), int)
        and hasattr(module, 'in_proj_bias')
        and (has['in_proj_weight'] or apart)
    ):
        raise TypeError(
            f'cannot read attention maps off a {kind}: it is neither a '
            'torch.nn.MultiheadAttention (open_clip_torch 2.32 to 3.x) nor has it '
            'num_heads, in_proj_weight (or q_, k_ and v_proj_weight) and in_proj_bias '
            '(open_clip 4)'
        )
    owned = {name for name, _ in module.named_parameters(recurse=False)}
    owned |= {n for n, c in module.named_children() if not isinstance(c, nn.Identity)}
    unknown = owned - _PROJECTIONS - _SHAPING - _AFTERWARDS
    if unknown:
        raise TypeError(
            f'cannot read attention maps off a {kind} with {sorted(unknown)}: it is '
            'not known what that does to them'
        )


def _keep_inputs(
    record: AttentionRecord, module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Forward pre-hook: keep query and key, batch first."""
    if record.query is not None:
        raise RuntimeError('an attention module ran twice within one capture')
    inputs = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    for name in _MASKS:
        if inputs.get(name) is not None:
            raise RuntimeError(
                f'an attention module got {name}; only unmasked attention is recomputed'
            )
    query: Tensor = next(iter(inputs.values())).detach()
    keys = [inputs[name] for name in _KEYS if inputs.get(name) is not None]
    key = keys[0].detach() if keys else query  # self-attention
    if not getattr(module, 'batch_first', True):
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    record.query, record.key = query, key
