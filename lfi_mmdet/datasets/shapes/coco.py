"""Masks as COCO segmentations."""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api

_Corner = tuple[int, int]


def _border(mask: np.ndarray) -> list[tuple[_Corner, _Corner]]:
    """Edges between mask and background, the mask on the right hand."""
    left, top, w, h = cv2.boundingRect(mask.astype(np.uint8))
    solid = mask[top : top + h, left : left + w].astype(np.int8)
    down = np.diff(solid, axis=0, prepend=0, append=0)
    right = np.diff(solid, axis=1, prepend=0, append=0)
    edges: list[tuple[_Corner, _Corner]] = []
    for steps, value, (x0, y0), (x1, y1) in (
        (down, 1, (0, 0), (1, 0)),
        (down, -1, (1, 0), (0, 0)),
        (right, 1, (0, 1), (0, 0)),
        (right, -1, (0, 0), (0, 1)),
    ):
        rows, columns = np.nonzero(steps == value)
        for x, y in zip((columns + left).tolist(), (rows + top).tolist()):
            edges.append(((x + x0, y + y0), (x + x1, y + y1)))
    return edges


def trace(mask: np.ndarray) -> list[float] | None:
    """Follow the border of a mask along the edges of its pixels.

    Args:
        mask (np.ndarray): bool, has shape (h, w), not empty.

    Returns:
        list[float] | None: Corners x1, y1, x2, y2, ..., a polygon that decodes
        to exactly this mask. None unless the border is a single closed line
        that never touches itself.
    """
    edges = _border(mask)
    # Where two pixels touch at a corner only one way on is kept, so that a walk
    # cannot take every edge
    follow = dict(edges)
    # The first edge starts at the top left corner of the topmost pixels
    first = here = edges[0][0]
    heading = (0, 0)
    corners: list[float] = []
    for steps in range(1, len(edges) + 1):
        there = follow[here]
        turned = (there[0] - here[0], there[1] - here[1])
        if turned != heading:
            corners += [float(here[0]), float(here[1])]
        here, heading = there, turned
        if here == first:
            return corners if steps == len(edges) else None
    return None


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """The mask fields of a COCO instance annotation.

    Args:
        mask (np.ndarray): bool, has shape (h, w), not empty.

    Returns:
        dict: ``segmentation`` (one polygon for a simple piece, else compressed
        RLE with a text ``counts``), ``area`` and ``bbox`` (x, y, w, h).
    """
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    polygon = trace(mask)
    if polygon is None:
        segmentation: Any = dict(
            size=[int(n) for n in rle['size']], counts=rle['counts'].decode('ascii')
        )
    else:
        segmentation = [polygon]
    return dict(
        segmentation=segmentation,
        area=float(mask_api.area(rle)),
        bbox=[float(n) for n in mask_api.toBbox(rle)],
    )
