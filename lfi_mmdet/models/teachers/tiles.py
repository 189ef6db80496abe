"""Put together what a teacher saw in the tiles of an image."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lfi_mmdet.structures import InteractionTargets

from .view import TeacherView


def stitch_targets(
    targets: InteractionTargets, view: TeacherView
) -> InteractionTargets:
    """Make the targets of B images of those of their tiles.

    - maps, log_mass: see :func:`stitch_maps`.
    - features: mean over the tiles, weighted by what each tile adds to the map. That
      is the feature of the stitched map; where tiles overlap, approximately.
    - relations: cosines of those features; without features, mean over the tiles,
      weighted by the product of what each tile adds to the maps of both texts.
    - scores: the greatest of the tiles. present: in any of the tiles.
    - tokens: side by side, see :func:`stitch_tokens`.

    Args:
        targets: Those of B * num_tiles inputs, not yet reduced to the present texts.
        view: The view that has cut the tiles.

    Raises:
        ValueError: If the tiles do not overlap by whole patches.
    """
    if view.num_tiles == 1:
        return targets
    assert targets.texts is None, 'rows of the tiles may be of different texts'
    h, w = targets.maps.shape[-2:]
    overlap = view.overlap_in_patches((h, w))
    parts, peak = _parts(targets.maps, targets.log_mass, view.tiles, overlap)
    maps, log_mass = _join(parts, peak, view.tiles, overlap)
    shares = parts.sum((-2, -1))
    shares = shares / shares.sum(1, keepdim=True)
    features, relations = targets.features, targets.relations
    if features is not None:
        tiled = features.unflatten(0, (-1, view.num_tiles))
        features = (shares[..., None] * tiled).sum(1)
    if relations is not None:
        relations = _relations(relations, features, shares)
    scores, present, tokens = targets.scores, targets.present, targets.tokens
    if tokens is not None:
        tokens = stitch_tokens(tokens, view.tiles, overlap)
    if scores is not None:
        scores = scores.unflatten(0, (-1, view.num_tiles)).amax(1)
    return replace(
        targets,
        maps=maps,
        present=present.unflatten(0, (-1, view.num_tiles)).any(1),
        features=features,
        relations=relations,
        log_mass=None if targets.log_mass is None else log_mass,
        scores=scores,
        tokens=tokens,
    )


def stitch_tokens(
    tokens: Tensor, tiles: tuple[int, int], overlap_in_patches: tuple[int, int]
) -> Tensor:
    """Put the tokens of tiles side by side on the grid of the whole image.

    Where tiles overlap they are averaged with the weights of :func:`stitch_maps`.

    Args:
        tokens: (B * R * C, L, h, w, D).
        tiles: (R, C).
        overlap_in_patches: See :func:`stitch_maps`.

    Returns:
        (B, L, H, W, D).
    """
    channels_first = tokens.permute(0, 1, 4, 2, 3)
    parts, _ = _parts(channels_first, None, tiles, overlap_in_patches)
    return _fold(parts, tiles, overlap_in_patches).permute(0, 1, 3, 4, 2)


def stitch_maps(
    maps: Tensor,
    log_mass: Tensor | None,
    tiles: tuple[int, int],
    overlap_in_patches: tuple[int, int],
) -> tuple[Tensor, Tensor | None]:
    """Put the maps of tiles together on the grid of the whole image.

    Each map is brought back to what it was before it was normalised; where tiles
    overlap, they are averaged, each with a weight that falls linearly towards its
    border, where patches know the least of their surroundings; and the whole is
    normalised.

    Args:
        maps: (B * R * C, L, T, h, w), each sums to 1; the tiles of an image follow
            each other row by row.
        log_mass: Log of what each summed to, (B * R * C, L, T); None for tiles that
            count alike.
        tiles: (R, C).
        overlap_in_patches: Patches by which tiles overlap along rows and columns.

    Returns:
        Maps (B, L, T, H, W), with H = R * h - (R - 1) * overlap, and their log mass
        (B, L, T), None if that of the tiles is.
    """
    parts, peak = _parts(maps, log_mass, tiles, overlap_in_patches)
    whole, mass = _join(parts, peak, tiles, overlap_in_patches)
    return whole, None if log_mass is None else mass


def _parts(
    maps: Tensor,
    log_mass: Tensor | None,
    tiles: tuple[int, int],
    overlap: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """What each tile adds to the whole, in units of the image's heaviest tile.

    Returns:
        (B, R * C, L, T, h, w) and the log of the unit, (B, L, T).
    """
    count = tiles[0] * tiles[1]
    h, w = maps.shape[-2:]
    if log_mass is None:
        log_mass = maps.new_zeros(maps.shape[:3])
    # a text that no tile has may have no mass at all; its tiles then count alike
    least = torch.finfo(log_mass.dtype).min
    masses = log_mass.clamp(min=least).unflatten(0, (-1, count))
    peak = masses.amax(1)
    rows = _taper(tiles[0], h, overlap[0], maps)
    cols = _taper(tiles[1], w, overlap[1], maps)
    weights = (rows[:, None, :, None] * cols[None, :, None, :]).flatten(0, 1)
    parts = maps.unflatten(0, (-1, count)) * weights[:, None, None]
    return parts * (masses - peak[:, None]).exp()[..., None, None], peak


def _join(
    parts: Tensor, peak: Tensor, tiles: tuple[int, int], overlap: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Add up :func:`_parts` into normalised maps and their log mass."""
    whole = _fold(parts, tiles, overlap)
    total = whole.sum((-2, -1)).clamp(min=torch.finfo(whole.dtype).tiny)
    log_mass = (peak + total.log()).clamp(min=torch.finfo(peak.dtype).min)
    return whole / total[..., None, None], log_mass


def _fold(parts: Tensor, tiles: tuple[int, int], overlap: tuple[int, int]) -> Tensor:
    """Add up what the tiles give, (B, R * C, L, T, h, w), into (B, L, T, H, W)."""
    batch, _, layers, texts, h, w = parts.shape
    step = (h - overlap[0], w - overlap[1])
    grid = tuple(
        (n - 1) * stride + side for n, stride, side in zip(tiles, step, (h, w))
    )
    columns = parts.permute(0, 2, 3, 4, 5, 1).flatten(1, 4)
    whole = F.fold(columns, grid, (h, w), stride=step)
    return whole.view(batch, layers, texts, *grid)


def _taper(count: int, length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights of the patches of tiles along one axis, (count, length).

    They sum to 1 over the tiles that cover a patch of the whole.
    """
    inside = torch.arange(length, device=like.device)
    ramp = ((inside + 1).to(like.dtype) / (overlap + 1)).clamp(max=1)
    weights = torch.minimum(ramp, ramp.flip(0)).repeat(count, 1)
    starts = torch.arange(count, device=like.device) * (length - overlap)
    places = starts[:, None] + inside
    total = like.new_zeros(count * (length - overlap) + overlap)
    total = total.index_add(0, places.flatten(), weights.flatten())
    return weights / total[places]


def _relations(relations: Tensor, features: Tensor | None, shares: Tensor) -> Tensor:
    """Cosines between texts in the whole image, (B, L, T, T).

    Args:
        relations: Those of the tiles, (B * R * C, L, T, T).
        features: Those of the images, (B, L, T, C), or None.
        shares: What each tile adds to the maps, (B, R * C, L, T).
    """
    if features is not None:
        unit = F.normalize(features, dim=-1)
        return unit @ unit.mT
    weights = shares[..., None] * shares[..., None, :]
    tiled = relations.unflatten(0, (-1, shares.shape[1]))
    total = weights.sum(1).clamp(min=torch.finfo(shares.dtype).tiny)
    return (weights * tiled).sum(1) / total
