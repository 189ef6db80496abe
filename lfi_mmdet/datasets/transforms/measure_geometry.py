"""Whether an image shows what its transforms reported."""

from __future__ import annotations

import math

import numpy as np

from .warp_maps import nine_numbers


def measure_geometry(
    homography: np.ndarray | None,
    ori_shape: tuple[int, int],
    img_shape: tuple[int, int],
) -> tuple[float, float]:
    """Compare the final image with where the original one is said to lie.

    Args:
        homography: 3 x 3, from original to final pixels; None for the identity.
        ori_shape: (height, width) of the original image in pixels.
        img_shape: (height, width) of the final image in pixels.

    Returns:
        Pixels by which the final image extends beyond the original one at most, and
        pixels by which the original one extends beyond the final image. Both are
        about 0 if it has been resized and flipped only.

    Raises:
        ValueError: If the homography is none, or leaves nothing of the original image
            to see, or is not 3 x 3.
    """
    (height, width), (rows, columns) = ori_shape[:2], img_shape[:2]
    # plain numbers: arrays this small would take longer
    a, b, left, c, d, top, e, f, one = (
        (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        if homography is None
        else nine_numbers(homography)
    )
    det = a * (d * one - top * f) - b * (c * one - top * e) + left * (c * f - d * e)
    corners = ((0, 0), (width, 0), (0, height), (width, height))
    scales = [e * x + f * y + one for x, y in corners]
    if not abs(det) > 1e-12 or not min(scales) > 0 or not math.isfinite(det):
        raise ValueError(
            f'homography_matrix={np.asarray(homography).tolist()} maps the image onto '
            'a line, or is not finite'
        )
    xs = [(a * x + b * y + left) / s for (x, y), s in zip(corners, scales)]
    ys = [(c * x + d * y + top) / s for (x, y), s in zip(corners, scales)]
    if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= columns or min(ys) >= rows:
        raise ValueError(
            f'homography_matrix={np.asarray(homography).tolist()} leaves nothing to '
            f'see of an image of {(height, width)} in one of {(rows, columns)} pixels'
        )
    return (
        float(max(min(xs), min(ys), columns - max(xs), rows - max(ys), 0)),
        float(max(-min(xs), -min(ys), max(xs) - columns, max(ys) - rows, 0)),
    )
