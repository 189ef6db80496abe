"""Painting styles, one per domain: how the same scene looks."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from .textures import (
    TEXTURES,
    fractal_noise,
    random_colour,
    second_shade,
    texture_field,
    value_noise,
)

# (rng, side) -> image; (rng, rgb, texture name, window shape, side) -> paint;
# (rng, image) -> image. Images and paints are RGB in [0, 1], float32, and have
# shape (3, h, w): planes broadcast several times faster than pixels.
BackgroundFn = Callable[[np.random.Generator, int], np.ndarray]
FillFn = Callable[
    [np.random.Generator, np.ndarray, str, tuple[int, int], int], np.ndarray
]
FinishFn = Callable[[np.random.Generator, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Style:
    """A painting style.

    Args:
        background (BackgroundFn): Paints what lies behind all items.
        fill (FillFn): Paints the inside of an item.
        finish (FinishFn): Changes the finished picture.
        outline (float): How dark the rim of an item is drawn; 0 draws none.
        noun (str): What captions call such a picture.
        names_colour (bool): Whether captions may name colours.
        names_texture (bool): Whether captions may name textures.
    """

    background: BackgroundFn
    fill: FillFn
    finish: FinishFn
    outline: float = 0.0
    noun: str = 'photo'
    names_colour: bool = True
    names_texture: bool = True


def planes(rgb: np.ndarray) -> np.ndarray:
    """A colour that broadcasts over an image, has shape (3, 1, 1)."""
    return rgb.astype(np.float32)[:, None, None]


def mix(field: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Colours between a (field 0) and b (field 1), has shape (3, h, w)."""
    return planes(a) + field * planes(b - a)


def _textured_fill(
    rng: np.random.Generator,
    rgb: np.ndarray,
    texture: str,
    shape: tuple[int, int],
    side: int,
) -> np.ndarray:
    h, w = shape
    field = texture_field(texture, rng, h, w, side)
    paint = mix(field, rgb, second_shade(rng, rgb))
    # Uneven light, as on a photo
    light = value_noise(rng, h, w, max(h, w) / 2)
    return paint * (0.82 + 0.36 * light)


def _plain_fill(
    rng: np.random.Generator,
    rgb: np.ndarray,
    texture: str,
    shape: tuple[int, int],
    side: int,
) -> np.ndarray:
    return np.broadcast_to(planes(rgb), (3, *shape))


def _paper_fill(
    rng: np.random.Generator,
    rgb: np.ndarray,
    texture: str,
    shape: tuple[int, int],
    side: int,
) -> np.ndarray:
    return np.full((3, *shape), 0.96, np.float32)


def _photo_background(rng: np.random.Generator, side: int) -> np.ndarray:
    # Regions with uneven borders, each in a texture that objects wear as well
    base = random_colour(rng)
    image = mix(
        fractal_noise(rng, side, side, side / 2, 6), base, second_shade(rng, base)
    )
    for _ in range(rng.integers(1, 4)):
        name = list(TEXTURES)[rng.integers(len(TEXTURES))]
        colour = random_colour(rng)
        # Often the second colour is another one altogether
        other = random_colour(rng) if rng.random() < 0.5 else second_shade(rng, colour)
        paint = mix(texture_field(name, rng, side, side, side), colour, other)
        region = fractal_noise(rng, side, side, rng.uniform(0.25, 0.8) * side, 5)
        softness = rng.uniform(2, 25)
        edge = rng.uniform(0.35, 0.65)
        alpha = np.clip((region - edge) * softness + 0.5, 0, 1) * rng.uniform(0.5, 1)
        image += alpha.astype(np.float32) * (paint - image)
    speckle = fractal_noise(rng, side, side, side / 12, 4) - np.float32(0.5)
    light = texture_field('shaded', rng, side, side, side) - np.float32(0.5)
    strength, slope = rng.uniform(0.1, 0.4), rng.uniform(0, 0.5)
    return image * (1 + strength * speckle + slope * light).astype(np.float32)


def _flat_background(rng: np.random.Generator, side: int) -> np.ndarray:
    return np.tile(planes(random_colour(rng)), (1, side, side))


def _paper_background(rng: np.random.Generator, side: int) -> np.ndarray:
    return np.full((3, side, side), 0.96, np.float32)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    if sigma < 0.2:
        return image
    return np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in image])


def _sensor(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    side = image.shape[1]
    # Blur in pixels grows with the image, so that a larger one is not easier
    image = _blurred(image, rng.uniform(0, 0.9) * side / 128)
    gain, offset = rng.uniform(0.75, 1.15), rng.uniform(-0.05, 0.1)
    cast = rng.uniform(0.93, 1.07, 3)
    image = image * planes(gain * cast) + np.float32(offset)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return image + noise * np.float32(rng.uniform(0.005, 0.05))


def _inverted(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    return 1 - np.clip(_sensor(rng, image), 0, 1)


def _noisy(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    image = _sensor(rng, _blurred(image, rng.uniform(0.6, 1.1) * image.shape[1] / 128))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + noise * np.float32(rng.uniform(0.1, 0.2))
    salt = rng.random(image.shape[1:], dtype=np.float32)
    image[:, salt < 0.015] = 0
    image[:, salt > 0.985] = 1
    return image


def _untouched(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    return image


STYLES: dict[str, Style] = {
    'photo': Style(_photo_background, _textured_fill, _sensor),
    'flat': Style(
        _flat_background,
        _plain_fill,
        _untouched,
        outline=0.45,
        noun='picture',
        names_texture=False,
    ),
    'line': Style(
        _paper_background,
        _paper_fill,
        _untouched,
        outline=0.9,
        noun='drawing',
        names_colour=False,
        names_texture=False,
    ),
    # The colours it shows are not those that the scene was sampled with
    'inverted': Style(
        _photo_background,
        _textured_fill,
        _inverted,
        noun='negative',
        names_colour=False,
    ),
    'noisy': Style(_photo_background, _textured_fill, _noisy),
}


def check_domain(domain: str) -> str:
    """Return a domain that exists.

    Raises:
        ValueError: If there is no such domain.
    """
    if domain not in STYLES:
        raise ValueError(f'unknown domain {domain!r}; choose from {", ".join(STYLES)}')
    return domain
