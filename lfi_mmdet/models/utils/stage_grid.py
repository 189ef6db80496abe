"""Feature maps of several strides on one grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_grid(x: Tensor, stride: int, side: int, grid: tuple[int, int]) -> Tensor:
    """Bring feature maps onto a grid of another stride.

    Finer ones are averaged, also where a cell is cut off by the border; coarser ones
    are repeated. Where a backbone has rounded down, its last cells are repeated too.

    Args:
        x: (B, C, H, W).
        stride: Pixels per cell of ``x``.
        side: Pixels per cell of the grid, a multiple or a divisor of ``stride``.
        grid: (h, w) of the grid.

    Returns:
        (B, C, h, w).
    """
    if side > stride:
        ratio = side // stride
        x = F.avg_pool2d(x, ratio, ceil_mode=True, count_include_pad=False)
    elif side < stride:
        x = F.interpolate(x, scale_factor=stride // side, mode='nearest')
    h, w = grid
    x = x[..., :h, :w]
    high, wide = h - x.shape[-2], w - x.shape[-1]
    return F.pad(x, (0, wide, 0, high), mode='replicate') if high or wide else x
