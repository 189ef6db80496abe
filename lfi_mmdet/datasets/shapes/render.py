"""From a scene to pixels."""

import cv2
import numpy as np

from .scene import Item, Scene
from .styles import STYLES, Style


def _with_rim(
    paint: np.ndarray, alpha: np.ndarray, side: int, strength: float
) -> np.ndarray:
    # The border of the image erodes nothing: a shape that is cut off stays open
    width = 2 * max(round(side / 96), 1) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    rim = strength * (alpha - cv2.erode(alpha, kernel))
    ink = np.float32(0 if paint.mean() > 0.3 else 1)
    return paint + rim * (ink - paint)


def _paint_item(image: np.ndarray, item: Item, style: Style) -> None:
    side = item.side
    (rows, columns), alpha = item.coverage
    if not alpha.any():
        return
    under = image[:, rows, columns]
    rng = np.random.default_rng(item.seed)
    paint = style.fill(rng, item.rgb, item.texture, alpha.shape, side)
    if style.outline:
        # No faint items here: their rims would give them away
        paint = _with_rim(paint, alpha, side, style.outline)
    elif item.faint:
        mean = (under * alpha).sum(axis=(1, 2), keepdims=True) / alpha.sum()
        paint = mean + np.float32(item.contrast) * (paint - mean)
    under += alpha * (paint - under)


def render(scene: Scene) -> np.ndarray:
    """Paint a scene in the style of its domain.

    Args:
        scene (Scene): A sampled scene.

    Returns:
        np.ndarray: RGB image, uint8, has shape (size, size, 3).
    """
    style = STYLES[scene.config.domain]
    rng = np.random.default_rng(scene.paint_seed)
    image = style.background(rng, scene.config.size)
    for item in scene.items:
        _paint_item(image, item, style)
    image = np.rint(np.clip(style.finish(rng, image), 0, 1) * 255)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))
