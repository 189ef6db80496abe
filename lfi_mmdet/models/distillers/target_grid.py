"""Bring the teacher's maps onto the student's patch grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_maps(
    maps: Tensor,
    img_shapes: Sequence[tuple[int, int]],
    batch_shape: tuple[int, int],
    grid: tuple[int, int],
    valid: Tensor | None,
) -> Tensor:
    """Resample maps that cover each unpadded image onto the grid of the padded batch.

    Bilinear between the teacher's patch centres; where the teacher's patches are
    finer than the student's, several points per student patch are averaged. Padded
    patches become 0, and what remains is normalised to sum to 1.

    Args:
        maps: (B, M, h, w); each covers the area ``img_shapes[b]`` of its image.
        img_shapes: (height, width) in pixels of each image without padding.
        batch_shape: (height, width) in pixels of the student's grid. That is the
            padded batch, rounded up to whole patches.
        grid: (H, W), the student's patches.
        valid: Bool (B, H * W) or None, see :class:`InteractionTrace`.

    Returns:
        (B, M, H * W), in the precision of ``maps``, at least float32.
    """
    maps = maps if maps.dtype == torch.float64 else maps.float()
    # points per student patch and side, so that no patch of a finer teacher is skipped
    finer = max(
        math.ceil(maps.shape[-2 + axis] * batch_shape[axis] / grid[axis] / shape[axis])
        for shape in img_shapes
        for axis in (0, 1)
    )
    rows, cols = grid[0] * finer, grid[1] * finer
    shapes = torch.tensor([tuple(s[:2]) for s in img_shapes], dtype=maps.dtype)
    shapes = shapes.to(maps.device, non_blocking=True)

    def positions(count: int, length: int, extent: Tensor) -> Tensor:
        pixels = (torch.arange(count, device=maps.device) + 0.5) * (length / count)
        return 2 * pixels.to(maps.dtype)[None] / extent[:, None] - 1

    y = positions(rows, batch_shape[0], shapes[:, 0])
    x = positions(cols, batch_shape[1], shapes[:, 1])
    points = torch.stack(
        (x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, cols)), -1
    )
    sampled = F.grid_sample(maps, points, padding_mode='border', align_corners=False)
    sampled = F.avg_pool2d(sampled, finer).flatten(2)
    if valid is not None:
        sampled = sampled.masked_fill(~valid[:, None], 0)
    total = sampled.sum(-1, keepdim=True)
    return sampled / total.clamp(min=torch.finfo(maps.dtype).tiny)
