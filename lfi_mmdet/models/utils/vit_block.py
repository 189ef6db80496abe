"""A ViT block with windowed or global attention, under the names DeiT and timm use."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp
from timm.models.vision_transformer_sam import (
    get_decomposed_rel_pos_bias,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn


class ViTAttention(nn.Module):
    """Multi-head self-attention on a patch grid, through PyTorch's fused kernel.

    Args:
        dims: Channels of a token.
        num_heads: Attention heads.
        qkv_bias: Whether the query, key and value projection has a bias.
        rel_pos_size: (height, width) in tokens for which decomposed relative
            positions (MViTv2) are learned; None for none. Other sizes interpolate.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        rel_pos_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, dims * 3, bias=qkv_bias)
        self.proj = nn.Linear(dims, dims)
        self.rel_pos_h: nn.Parameter | None = None
        self.rel_pos_w: nn.Parameter | None = None
        if rel_pos_size is not None:
            head_dims = dims // num_heads
            rows, cols = (2 * side - 1 for side in rel_pos_size)
            self.rel_pos_h = nn.Parameter(self.qkv.weight.new_zeros(rows, head_dims))
            self.rel_pos_w = nn.Parameter(self.qkv.weight.new_zeros(cols, head_dims))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each grid of ``x``, (B, H, W, C)."""
        b, h, w, c = x.shape
        # four dimensions, or CUDA falls back to the kernel that stores the N x N map
        q, k, v = (
            self.qkv(x)
            .reshape(b, h * w, 3, self.num_heads, c // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        bias = None
        if self.rel_pos_h is not None and self.rel_pos_w is not None:
            bias = get_decomposed_rel_pos_bias(
                q.flatten(0, 1), self.rel_pos_h, self.rel_pos_w, (h, w), (h, w)
            ).view(b, self.num_heads, h * w, h * w)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(b, h, w, c))


class ViTBlock(nn.Module):
    """Pre-norm transformer block; attention inside windows or over the whole grid.

    timm's SAM block has the same parts, but drops paths per window instead of per
    image and calls the fused attention with three dimensions.

    Args:
        dims: Channels of a token.
        num_heads: Attention heads.
        window_size: Side of the windows in tokens; 0 for global attention.
        mlp_ratio: Hidden channels of the MLP over ``dims``.
        qkv_bias: See :class:`ViTAttention`.
        drop_path: Probability of dropping a residual branch.
        init_values: Start value of the layer scale (DeiT III); None for none.
        rel_pos_size: See :class:`ViTAttention`.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        window_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        init_values: float | None = None,
        rel_pos_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.window_size = window_size

        def layer_scale() -> nn.Module:
            return (
                nn.Identity() if init_values is None else LayerScale(dims, init_values)
            )

        self.norm1 = nn.LayerNorm(dims, eps=1e-6)
        self.attn = ViTAttention(dims, num_heads, qkv_bias, rel_pos_size)
        self.ls1 = layer_scale()
        self.norm2 = nn.LayerNorm(dims, eps=1e-6)
        self.mlp = Mlp(dims, int(dims * mlp_ratio))
        self.ls2 = layer_scale()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x``, (B, H, W, C)."""
        y = self.norm1(x)
        if self.window_size:
            windows, padded = window_partition(y, self.window_size)
            y = self.attn(windows)
            y = window_unpartition(
                y, self.window_size, (x.shape[1], x.shape[2]), padded
            )
        else:
            y = self.attn(y)
        x = x + self.drop_path(self.ls1(y))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
