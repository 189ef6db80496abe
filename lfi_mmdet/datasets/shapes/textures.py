"""Named colours, and textures as scalar fields between two colours."""

from collections.abc import Callable

import cv2
import numpy as np

FieldFn = Callable[[np.random.Generator, int, int, float], np.ndarray]

# RGB in [0, 1]
COLOURS: dict[str, tuple[float, float, float]] = {
    'red': (0.80, 0.14, 0.14),
    'orange': (0.93, 0.50, 0.10),
    'yellow': (0.92, 0.83, 0.18),
    'green': (0.18, 0.60, 0.22),
    'cyan': (0.15, 0.72, 0.74),
    'blue': (0.16, 0.30, 0.80),
    'purple': (0.48, 0.20, 0.66),
    'pink': (0.95, 0.52, 0.72),
    'brown': (0.45, 0.27, 0.13),
    'white': (0.94, 0.94, 0.94),
    'gray': (0.50, 0.50, 0.50),
    'black': (0.09, 0.09, 0.09),
}
# What lets a person still call it by that name
_JITTER = 0.06


def sample_colour(rng: np.random.Generator, name: str) -> np.ndarray:
    """A shade of a named colour, RGB in [0, 1], has shape (3, )."""
    shade = np.array(COLOURS[name]) + rng.uniform(-_JITTER, _JITTER, 3)
    return np.clip(shade, 0, 1)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A shade of any colour, RGB in [0, 1], has shape (3, )."""
    return sample_colour(rng, list(COLOURS)[rng.integers(len(COLOURS))])


def second_shade(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """A clearly lighter or darker shade of the same colour."""
    light = colour.mean()
    towards_white = rng.random() < 0.5 if 0.25 < light < 0.7 else light <= 0.25
    amount = rng.uniform(0.35, 0.65)
    return colour + (float(towards_white) - colour) * amount


def _smooth_noise(rng: np.random.Generator, h: int, w: int, cell: float) -> np.ndarray:
    grid = rng.random((int(h / cell) + 2, int(w / cell) + 2), dtype=np.float32)
    # Creases of a linear interpolation show only in coarse noise
    how = cv2.INTER_CUBIC if cell > 6 else cv2.INTER_LINEAR
    return cv2.resize(grid, (w, h), interpolation=how)


def value_noise(rng: np.random.Generator, h: int, w: int, cell: float) -> np.ndarray:
    """Smooth noise in [0, 1] whose features are about ``cell`` pixels wide."""
    return np.clip(_smooth_noise(rng, h, w, cell), 0, 1)


def fractal_noise(
    rng: np.random.Generator, h: int, w: int, cell: float, octaves: int = 4
) -> np.ndarray:
    """Sum of value noises, each finer and fainter, stretched to [0, 1]."""
    total = np.zeros((h, w), np.float32)
    weight = 1.0
    for octave in range(octaves):
        total += weight * _smooth_noise(rng, h, w, max(cell / 2**octave, 1.0))
        weight *= 0.55
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _rotated_grid(
    rng: np.random.Generator, h: int, w: int
) -> tuple[np.ndarray, np.ndarray]:
    angle = rng.uniform(0, np.pi)
    x = np.arange(w, dtype=np.float32)[None, :]
    y = np.arange(h, dtype=np.float32)[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift = rng.uniform(0, 100, 2).astype(np.float32)
    return x * cos + y * sin + shift[0], y * cos - x * sin + shift[1]


def _wave(position: np.ndarray, period: float) -> np.ndarray:
    # A square wave with soft edges, so that fine patterns do not alias
    return np.clip(0.5 + 1.5 * np.sin(position * np.float32(2 * np.pi / period)), 0, 1)


def _plain(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    return np.zeros((h, w), np.float32)


def _striped(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    u, _ = _rotated_grid(rng, h, w)
    return _wave(u, period)


def _checkered(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    u, v = _rotated_grid(rng, h, w)
    a, b = _wave(u, 1.4 * period), _wave(v, 1.4 * period)
    return a + b - 2 * a * b


def _dotted(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    u, v = _rotated_grid(rng, h, w)
    turn = np.float32(2 * np.pi / (1.2 * period))
    return np.clip(2 * (np.cos(u * turn) + np.cos(v * turn)) - 0.6, 0, 1)


def _shaded(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    u, _ = _rotated_grid(rng, h, w)
    low, high = float(u.min()), float(u.max())
    return (u - low) / max(high - low, 1e-6)


def _grainy(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    return value_noise(rng, h, w, 1.5)


def _marbled(rng: np.random.Generator, h: int, w: int, period: float) -> np.ndarray:
    return fractal_noise(rng, h, w, max(h, w) / 2)


# The names are the adjectives that captions use.
TEXTURES: dict[str, FieldFn] = {
    'plain': _plain,
    'striped': _striped,
    'checkered': _checkered,
    'dotted': _dotted,
    'shaded': _shaded,
    'grainy': _grainy,
    'marbled': _marbled,
}


def texture_field(
    name: str, rng: np.random.Generator, h: int, w: int, side: int
) -> np.ndarray:
    """Draw a texture as the share of the second colour in every pixel.

    Args:
        name (str): One of :data:`TEXTURES`.
        rng (np.random.Generator): Decides phase, direction and scale.
        h (int): Height in pixels.
        w (int): Width in pixels.
        side (int): Side of the whole image in pixels; the pattern repeats at
            most every 6% of it, which keeps the cells of a checkered background
            too small to pass for square objects.

    Returns:
        np.ndarray: Has shape (h, w), float32 in [0, 1].
    """
    period = np.clip(rng.uniform(0.15, 0.4) * max(h, w), 3.5, max(0.06 * side, 3.5))
    return TEXTURES[name](rng, h, w, float(period))
