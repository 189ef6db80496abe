"""Bring the teacher's maps onto the student's patch grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
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
    patches become 0; the strip of an image that lies in them, less than half a patch,
    counts towards their neighbours. What remains is normalised to sum to 1.

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
    sampled = resample_tokens(maps, img_shapes, batch_shape, grid, valid)
    total = sampled.sum(-1, keepdim=True)
    return sampled / total.clamp(min=torch.finfo(sampled.dtype).tiny)


def resample_tokens(
    maps: Tensor,
    img_shapes: Sequence[tuple[int, int]],
    batch_shape: tuple[int, int],
    grid: tuple[int, int],
    valid: Tensor | None,
) -> Tensor:
    """Do what :func:`resample_maps` does, but normalise nothing.

    Args:
        maps: Channels of tokens, (B, M, h, w).
        img_shapes: See :func:`resample_maps`.
        batch_shape: See :func:`resample_maps`.
        grid: See :func:`resample_maps`.
        valid: See :func:`resample_maps`.

    Returns:
        (B, M, H * W), in the precision of ``maps``, at least float32; 0 on padding.
    """
    maps = maps if maps.dtype == torch.float64 else maps.float()
    heights, widths = zip(*((shape[0], shape[1]) for shape in img_shapes))
    with torch.autocast(maps.device.type, enabled=False):
        rows = _axis_weights(maps, maps.shape[2], heights, batch_shape[0], grid[0])
        cols = _axis_weights(maps, maps.shape[3], widths, batch_shape[1], grid[1])
        # one product per axis; broadcasting would copy the weights for every map
        sampled = (maps.flatten(1, 2) @ cols.mT).unflatten(1, maps.shape[1:3])
        sampled = rows @ sampled.transpose(1, 2).flatten(2)
    sampled = sampled.unflatten(2, (-1, grid[1])).transpose(1, 2).flatten(2)
    if valid is not None:
        sampled = sampled.masked_fill_(~valid[:, None], 0)
    return sampled


def _axis_weights(
    like: Tensor, patches: int, extents: Sequence[int], length: int, cells: int
) -> Tensor:
    """How much of each teacher's patch each student's patch gets, along one axis.

    Args:
        like: Gives device and type.
        patches: h, the teacher's patches, which cover the extent.
        extents: Pixels of each image without padding.
        length: Pixels that the student's patches cover.
        cells: H, the student's patches.

    Returns:
        (B, H, h). Rows of patches whose centre lies in the image sum to 1.
    """
    device, dtype = like.device, like.dtype
    # points per student patch, so that no patch of a finer teacher is skipped; a
    # ratio that is whole but for rounding must not be rounded up
    finer = math.ceil(patches * length / cells / min(extents) - 1e-6)
    finer = max(1, finer)
    extent = torch.tensor(list(extents), dtype=dtype).to(device, non_blocking=True)
    extent = extent[:, None]
    cell = torch.arange(cells, device=device)
    points = torch.arange(cells * finer, device=device).to(dtype) + 0.5
    points = points * (length / (cells * finer))
    # bilinear, and constant from the outermost centres to the border
    position = (points / extent * patches - 0.5).clamp(0, patches - 1)
    patch = torch.arange(patches, device=device)
    reads = (1 - (position[..., None] - patch).abs()).clamp(min=0)
    # which patch each point counts for: its own, but none beyond the last valid one
    last = ((cell + 0.5) * (length / cells) < extent).sum(1, keepdim=True) - 1
    home = torch.minimum(cell.repeat_interleave(finer), last)
    counts = (home[:, None] == cell[:, None]) & (points < extent)[:, None]
    averages = counts.to(dtype)
    averages = averages / averages.sum(-1, keepdim=True).clamp(min=1)
    return averages @ reads
