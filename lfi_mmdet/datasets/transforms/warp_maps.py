"""Maps of an original image, brought onto what augmentation left of it."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array

#: Deviation, as a share of the image's side, below which a map need not be resampled;
#: float32 homographies of several transforms multiply to less
_SAME = 1e-5
#: Mean of what is shown, relative to the mean of the whole map, below which it is not
#: told from rounding: about the least step of a peaked map with one byte per cell
_LEAST = 1e-5
#: Points per side of a cell that tell how much of it shows the original image
_COVER = 4


def warp_maps(
    maps: np.ndarray,
    homography: np.ndarray | None,
    ori_shape: tuple[int, int],
    img_shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Resample maps that cover an original image to cover an augmented one.

    The centre of every cell is followed back into the original image, where the maps
    are read bilinearly between the centres of their cells; beyond the outermost
    centres the border's value holds. A cell that shows more of the original image than
    a cell of the map is the mean of several points, and one that partly shows padding
    counts by the part that does not. So resizing alone changes nothing, a flip
    reverses the array exactly, and what a crop shows is enlarged smoothly.

    Args:
        maps: (..., h, w), float32; over ``ori_shape``.
        homography: 3 x 3, from pixels of the original image to those of the final
            one, both measured from the top left corner (not from the centre of the
            first pixel), as mmdet's transforms record it; None for the identity.
        ori_shape: (height, width) of the original image in pixels.
        img_shape: (height, width) of the final image in pixels, without padding of
            the batch.

    Returns:
        Maps (..., h, w), float32, over ``img_shape``, each summing to 1; and bool
        (...), False for maps that have nothing in what is shown, which become uniform.

    Raises:
        ValueError: If the homography cannot be inverted, or is not 3 x 3.
    """
    inverse = _to_fractions(homography, ori_shape, img_shape)
    shape = maps.shape[-2:]
    if isinstance(inverse, np.ndarray):
        flat = maps.reshape(-1, shape[0] * shape[1])
        warped = (_matrix(inverse, shape) @ flat.T).T.reshape(maps.shape)
    else:
        if all(map(_is_whole, inverse)):
            flips = [slice(None, None, -1 if a > b else 1) for a, b in inverse]
            return (
                np.ascontiguousarray(maps[..., flips[1], flips[0]]),
                np.ones(maps.shape[:-2], bool),
            )
        columns, rows = (_weights(n, *s) for n, s in zip(shape[::-1], inverse))
        across = (maps.reshape(-1, shape[1]) @ columns.T).reshape(maps.shape)
        warped = rows @ across
    total = warped.sum((-2, -1), keepdims=True)
    found = total > _LEAST
    if found.all():
        warped /= total
    else:
        warped = np.where(
            found, warped / np.where(found, total, 1), np.float32(1 / np.prod(shape))
        )
    return warped, found[..., 0, 0]


def _to_fractions(
    homography: np.ndarray | None,
    ori_shape: tuple[int, int],
    img_shape: tuple[int, int],
) -> np.ndarray | tuple[tuple[float, float], tuple[float, float]]:
    """From the final to the original image, with both sides measured as 1.

    Returns:
        Where the final image begins and ends along x and along y; or, if it is rotated
        or sheared, the matrix 3 x 3.
    """
    (height, width), (ori_height, ori_width) = img_shape, ori_shape
    if homography is None:
        return (0.0, width / ori_width), (0.0, height / ori_height)
    a, b, left, c, d, top, e, f, scale = nine_numbers(homography)
    # plain numbers: arrays this small would take longer than the maps
    if not (b or c or e or f) and math.isfinite(a + d + left + top) and a * d and scale:
        return (
            (-left / a / ori_width, (width * scale - left) / a / ori_width),
            (-top / d / ori_height, (height * scale - top) / d / ori_height),
        )
    matrix = np.array([[a, b, left], [c, d, top], [e, f, scale]])
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        inverse = np.full((3, 3), np.nan)
    if not np.isfinite(inverse).all() or not inverse[2, 2]:
        raise ValueError(
            f'homography_matrix={matrix.tolist()} maps the image onto a line, or is '
            'not finite'
        )
    original = np.diag((1 / ori_width, 1 / ori_height, 1.0))
    return original @ (inverse / inverse[2, 2]) @ np.diag((width, height, 1.0))


def nine_numbers(homography: np.ndarray) -> list[float]:
    """The numbers of a homography, row by row.

    Raises:
        ValueError: If it is not 3 x 3.
    """
    matrix = np.asarray(homography, float)
    if matrix.shape != (3, 3):
        raise ValueError(f'homography_matrix={matrix.tolist()} is not 3 x 3')
    return matrix.ravel().tolist()


def _is_whole(span: tuple[float, float]) -> bool:
    low, high = sorted(span)
    return abs(low) < _SAME and abs(high - 1) < _SAME


def _weights(count: int, start: float, stop: float) -> np.ndarray:
    """Weights (count, count) that resample one axis.

    Args:
        count: Cells of the map, before and after.
        start: Where in the original image, from 0 to 1, the final image begins.
        stop: Where it ends; less than ``start`` if the image is flipped.
    """
    cells = np.arange(count)
    step = (stop - start) / count
    middles, half = start + step * (cells + 0.5), abs(step) / 2
    low, high = (middles - half).clip(0, 1), (middles + half).clip(0, 1)
    length, points = high - low, _points(abs(stop - start))
    offsets = (np.arange(points)[:, None] + 0.5) / points
    places = ((low + length * offsets) * count - 0.5).clip(0, count - 1)
    tents = (1 - np.abs(places[..., None] - cells)).clip(0).mean(0)
    return (tents * (length / (2 * half))[:, None]).astype(np.float32)


def _matrix(inverse: np.ndarray, shape: tuple[int, ...]) -> csr_array:
    """Weights (h * w, h * w) for an image that is rotated or sheared as well."""
    height, width = shape
    # how many cells of the map the sides of a cell in the middle span
    steps = np.array([[0, 1 / width, 0], [0, 0, 1 / height], [1, 1, 1]])
    steps[:2] += 0.5
    x, y = _project(inverse, steps) * ((width,), (height,))
    lengths = [np.hypot(x[i] - x[0], y[i] - y[0]) for i in (1, 2)]
    side = _points(max(lengths))
    x, y = _project(inverse, _grid(shape, side)) * ((width,), (height,)) - 0.5
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    x, y = x - left, y - top
    weights = np.stack(((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x), -1)
    cells = np.stack((top, top, bottom, bottom), -1) * width
    cells += np.stack((left, right, left, right), -1)
    inside = _project(inverse, _grid(shape, _COVER))
    shown = ((inside >= 0) & (inside <= 1)).all(0)
    share = shown.reshape(height * width, -1).mean(1, keepdims=True)
    weights = weights.reshape(height * width, -1) * (share / side**2)
    ends = np.arange(height * width + 1) * weights.shape[1]
    return csr_array(
        (weights.ravel().astype(np.float32), cells.ravel(), ends),
        shape=(height * width,) * 2,
    )


def _points(cells: float) -> int:
    """Points per side of a cell that spans so many cells of the map."""
    return max(1, int(np.ceil(cells - 1e-3)))


def _grid(shape: tuple[int, ...], side: int) -> np.ndarray:
    """Homogeneous points (3, h * w * side * side), those of a cell side by side."""
    y, x = ((np.arange(n * side) + 0.5) / (n * side) for n in shape)
    grid = np.stack(np.broadcast_arrays(x, y[:, None], 1.0))
    grid = grid.reshape(3, shape[0], side, shape[1], side)
    return grid.transpose(0, 1, 3, 2, 4).reshape(3, -1)


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y, scale = matrix @ points
    return np.stack((x, y)) / scale
