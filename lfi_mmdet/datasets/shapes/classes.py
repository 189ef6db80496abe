"""Outlines of the shape classes, as polygons in unit coordinates."""

from collections.abc import Callable, Sequence

import numpy as np

OutlineFn = Callable[[float], np.ndarray]

# Enough segments that no edge is longer than 2 px on a circle 200 px wide
_CURVE_POINTS = 96


def _arc(radius: float, start: float, stop: float, points: int) -> np.ndarray:
    angles = np.linspace(start, stop, points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int) -> np.ndarray:
    return _arc(1.0, 0.0, 2 * np.pi, corners + 1)[:-1]


def _stretched(points: np.ndarray, ratio: float) -> np.ndarray:
    return points * np.array([1.0, ratio])


def _circle(variant: float) -> np.ndarray:
    return _regular(_CURVE_POINTS)


def _ellipse(variant: float) -> np.ndarray:
    return _stretched(_regular(_CURVE_POINTS), 0.45 + 0.23 * variant)


def _square(variant: float) -> np.ndarray:
    return _regular(4)


def _rectangle(variant: float) -> np.ndarray:
    half = 0.38 + 0.28 * variant
    return np.array([[-1, -half], [1, -half], [1, half], [-1, half]])


def _diamond(variant: float) -> np.ndarray:
    return _stretched(_regular(4), 0.45 + 0.23 * variant)


def _trapezoid(variant: float) -> np.ndarray:
    top, half = 0.35 + 0.25 * variant, 0.45 + 0.3 * variant
    return np.array([[-top, -half], [top, -half], [1, half], [-1, half]])


def _triangle(variant: float) -> np.ndarray:
    return np.array([[0, -1.0], [0.65 + 0.5 * variant, 0.7], [-0.65, 0.7]])


def _pentagon(variant: float) -> np.ndarray:
    return _stretched(_regular(5), 0.85 + 0.15 * variant)


def _hexagon(variant: float) -> np.ndarray:
    return _stretched(_regular(6), 0.9 + 0.2 * variant)


def _octagon(variant: float) -> np.ndarray:
    return _stretched(_regular(8), 0.85 + 0.15 * variant)


def _star(variant: float) -> np.ndarray:
    points = _regular(10)
    points[1::2] *= 0.36 + 0.16 * variant
    return points


def _cross(variant: float) -> np.ndarray:
    a = 0.24 + 0.18 * variant
    quarter = np.array([[a, -1], [a, -a], [1, -a]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _crescent(variant: float) -> np.ndarray:
    # The unit disc less a disc of radius r whose centre lies at (d, 0)
    r, d = 0.85, 0.4 + 0.25 * variant
    x = (1 - r**2 + d**2) / (2 * d)
    y = np.sqrt(1 - x**2)
    outer, inner = np.arctan2(y, x), np.arctan2(y, x - d)
    cut = _arc(r, 2 * np.pi - inner, inner, _CURVE_POINTS // 2) + np.array([d, 0])
    body = _arc(1.0, outer, 2 * np.pi - outer, _CURVE_POINTS // 2)
    return np.concatenate([body, cut[1:-1]])


def _ring(variant: float) -> np.ndarray:
    # A keyhole: the way in and the way out are the same segment
    hole = 0.45 + 0.2 * variant
    outer = _arc(1.0, 0.0, 2 * np.pi, _CURVE_POINTS)
    inner = _arc(hole, 2 * np.pi, 0.0, _CURVE_POINTS)
    return np.concatenate([outer, inner])


def _heart(variant: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, _CURVE_POINTS, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return _stretched(np.stack([x, y], axis=1), 0.85 + 0.3 * variant)


def _arrow(variant: float) -> np.ndarray:
    shaft, neck = 0.2 + 0.1 * variant, 0.2 * variant
    half = np.array([[-1, shaft], [neck, shaft], [neck, 0.65], [1, 0]])
    return np.concatenate([half, (half * [1, -1])[-2::-1]])


# The order matters: `--classes N` takes the first N, and category ids follow it.
_OUTLINES: dict[str, OutlineFn] = {
    'circle': _circle,
    'square': _square,
    'triangle': _triangle,
    'star': _star,
    'rectangle': _rectangle,
    'ellipse': _ellipse,
    'pentagon': _pentagon,
    'hexagon': _hexagon,
    'diamond': _diamond,
    'trapezoid': _trapezoid,
    'crescent': _crescent,
    'arrow': _arrow,
    'cross': _cross,
    'heart': _heart,
    'ring': _ring,
    'octagon': _octagon,
}

SHAPE_CLASSES: tuple[str, ...] = tuple(_OUTLINES)
MIN_CLASSES = 8


def outline(name: str, variant: float) -> np.ndarray:
    """The outline of one shape, centred and with a longest side of 1.

    Args:
        name (str): One of :data:`SHAPE_CLASSES`.
        variant (float): In [0, 1]; moves the shape through what its class
            allows (aspect, thickness of arms, ...). Classes do not overlap: no
            rectangle is as square as a square.

    Returns:
        np.ndarray: Polygon, has shape (N, 2), columns x and y (y points down).
    """
    points = np.asarray(_OUTLINES[name](variant), dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / (high - low).max()


def polygon_area(points: np.ndarray) -> float:
    """Area enclosed by a polygon of shape (N, 2), holes of keyholes left out."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def choose_classes(choice: int | Sequence[str]) -> tuple[str, ...]:
    """Resolve a number of classes or a list of their names.

    Args:
        choice (int | Sequence[str]): How many of :data:`SHAPE_CLASSES` to take
            from the front, or the names themselves, in the order of their ids.

    Returns:
        tuple[str, ...]: The class names.

    Raises:
        ValueError: If a name is unknown or double, or their number is not in
            8-16.
    """
    if isinstance(choice, int):
        names = SHAPE_CLASSES[: max(choice, 0)]
        count = choice
    else:
        names = tuple(choice)
        count = len(names)
    for name in names:
        if name not in _OUTLINES:
            raise ValueError(
                f'unknown shape class {name!r}; choose from {", ".join(SHAPE_CLASSES)}'
            )
        if names.count(name) > 1:
            raise ValueError(f'shape class {name!r} is listed more than once')
    if not MIN_CLASSES <= count <= len(SHAPE_CLASSES):
        raise ValueError(
            f'{count} shape classes asked for; choose '
            f'{MIN_CLASSES} to {len(SHAPE_CLASSES)} of {", ".join(SHAPE_CLASSES)}'
        )
    return names
