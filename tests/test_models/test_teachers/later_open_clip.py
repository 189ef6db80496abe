"""Stand-ins for what open_clip 4 puts in the place of torch's attention.

Written from what its sources say it does: the module takes keys and values as ``k_x``
and ``v_x``, is batch first, returns a tensor only, keeps torch's names of weights, and
takes boolean masks as torch's ``scaled_dot_product_attention`` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LaterAttention(nn.Module):
    """Attention with the layout of open_clip 4."""

    def __init__(
        self,
        dims: int,
        num_heads: int,
        key_dims: int | None = None,
        bias: bool = True,
        qk_norm: bool = False,
        cosine: bool = False,
        head_scale: bool = False,
        inner_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dims // num_heads
        self.scale, self.use_sdpa = self.head_dim**-0.5, True
        self.logit_scale_max = math.log(100)
        shapes = dict(q=(dims, dims), k=(dims, key_dims), v=(dims, key_dims))
        if key_dims in (None, dims):
            self.in_proj_weight = nn.Parameter(torch.randn(3 * dims, dims) / 4)
            shapes = dict.fromkeys('qkv')
        else:
            self.in_proj_weight = None
        for name, shape in shapes.items():
            weight = nn.Parameter(torch.randn(shape) / 4) if shape else None
            setattr(self, f'{name}_proj_weight', weight)
        self.in_proj_bias = nn.Parameter(torch.randn(3 * dims)) if bias else None
        one = dict(elementwise_affine=True)
        self.ln_q, self.ln_k, self.ln_inner = (
            nn.LayerNorm(size, **one) if wanted else nn.Identity()
            for size, wanted in (
                (self.head_dim, qk_norm),
                (self.head_dim, qk_norm),
                (dims, inner_norm),
            )
        )
        for norm in (self.ln_q, self.ln_k, self.ln_inner):
            for value in norm.parameters():
                value.data.uniform_(0.5, 2)
        shape = (num_heads, 1, 1)
        self.logit_scale = nn.Parameter(torch.rand(shape) * 2) if cosine else None
        self.head_scale = nn.Parameter(torch.rand(shape) + 0.5) if head_scale else None
        self.attn_drop, self.out_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.out_proj = nn.Linear(dims, dims)

    def project(self, x: Tensor, name: str) -> Tensor:
        index = 'qkv'.index(name)
        weight = getattr(self, f'{name}_proj_weight')
        if weight is None:
            weight = self.in_proj_weight.chunk(3)[index]
        bias = self.in_proj_bias
        out = F.linear(x, weight, None if bias is None else bias.chunk(3)[index])
        return out.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def maps(self, x: Tensor, k_x: Tensor) -> Tensor:
        """The maps, formed explicitly."""
        q, k = self.project(x, 'q'), self.project(k_x, 'k')
        if self.logit_scale is not None:
            cosines = F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], -1)
            return (cosines * self.logit_scale.clamp(max=math.log(100)).exp()).softmax(
                -1
            )
        return (self.ln_q(q) @ self.ln_k(k).mT * self.scale).softmax(-1)

    def forward(
        self,
        x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        k_x = x if k_x is None else k_x
        v = self.project(x if v_x is None else v_x, 'v')
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        if self.logit_scale is not None:
            assert attn_mask is None
            out = self.maps(x, k_x) @ v
        else:
            q, k = self.ln_q(self.project(x, 'q')), self.ln_k(self.project(k_x, 'k'))
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attn_mask, scale=self.scale
            )
        if self.head_scale is not None:
            out = out * self.head_scale
        out = self.ln_inner(out.transpose(1, 2).flatten(2))
        return self.out_drop(self.out_proj(out))

    @classmethod
    def like(cls, attn: nn.MultiheadAttention) -> LaterAttention:
        """The same attention with the same weights."""
        dims = attn.kdim if attn.kdim != attn.embed_dim else None
        later = cls(attn.embed_dim, attn.num_heads, dims)
        later.load_state_dict(attn.state_dict())
        return later.eval().requires_grad_(False)


def modernise(network: nn.Module) -> nn.Module:
    """Replace all of torch's attention in a network of open_clip 3."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, LaterAttention.like(child))
    return network


@contextmanager
def later_calls() -> Iterator[None]:
    """Let open_clip 3's blocks and poolers call attention as those of 4 do."""
    from open_clip import transformer

    def attend(
        self: Any,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        return self.attn(q_x, k_x=k_x, v_x=v_x, attn_mask=attn_mask)

    def pool(self: Any, x: Tensor) -> Tensor:
        x = self.ln_k(x)
        query = self.ln_q(self.query).expand(len(x), -1, -1)
        return self.attn(query, k_x=x, v_x=x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer.ResidualAttentionBlock, 'attention', attend)
        patch.setattr(transformer.AttentionalPooler, 'forward', pool)
        yield
