"""What backbone, teacher and distiller hand to one another.

See DESIGN section 3 (data flow). Shapes use B images, K queries, T texts, h heads,
L layers and a grid of H x W patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class InteractionSpec:
    """What a backbone records, known before any image is seen.

    Args:
        layers: Block indices after which queries and patches interact, ascending.
        num_queries: K.
        embed_dims: Channels of a query.
        feedback: Whether the patches read from the queries, so that the detection
            losses reach the queries.
    """

    layers: tuple[int, ...]
    num_queries: int
    embed_dims: int
    feedback: bool


@dataclass
class InteractionTrace:
    """The student's side: what the queries looked at in one forward pass.

    Attributes:
        logits: One tensor (B, h, K, H * W) per interaction layer, before the softmax
            and before padding is masked out.
        queries: One tensor (B, K, d) per interaction layer, after its update.
        grid: (H, W) of the patch grid.
        valid: Bool (B, H * W), False on padded patches; None if nothing is padded.
    """

    logits: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)
    valid: Tensor | None = None


@dataclass
class InteractionTargets:
    """The teacher's side: which patches each text attends to.

    Attributes:
        maps: (B, L, T, h, w), float32; over the grid each map sums to 1 and covers
            the unpadded area of its image. Rows of texts that are not present are
            undefined, but finite.
        present: Bool (B, T); True where the text describes the image.
        features: Text-conditioned visual features (B, L, T, C), float32, or None for
            a teacher that has none.
    """

    maps: Tensor
    present: Tensor
    features: Tensor | None = None


def valid_patches(
    img_shapes: Sequence[tuple[int, int]],
    grid: tuple[int, int],
    stride: tuple[float, float],
    device: torch.device | str = 'cpu',
) -> Tensor:
    """Mark the patches whose centre lies inside the unpadded image.

    Args:
        img_shapes: (height, width) in pixels of each image before batch padding.
        grid: (H, W) of the patch grid.
        stride: Height and width of a patch in pixels.
        device: Where the mask is made.

    Returns:
        Bool (B, H * W).
    """
    shapes = torch.tensor([tuple(s[:2]) for s in img_shapes], dtype=torch.float32)
    rows = (torch.arange(grid[0]) + 0.5) * stride[0]
    cols = (torch.arange(grid[1]) + 0.5) * stride[1]
    inside = (rows[None, :, None] < shapes[:, 0, None, None]) & (
        cols[None, None, :] < shapes[:, 1, None, None]
    )
    return inside.flatten(1).to(device, non_blocking=True)
