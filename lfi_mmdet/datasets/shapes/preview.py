"""A contact sheet: scenes next to their outlined masks and captions."""

import colorsys
import textwrap
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .captions import captions
from .config import SceneConfig
from .render import render
from .scene import Scene, sample_scene

_SCALE, _COLUMNS, _TEXT_LINES = 2, 4, 6


def _outlined(scene: Scene, image: np.ndarray) -> np.ndarray:
    canvas = image.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    for number, index in enumerate(scene.objects):
        mask = scene.visible_mask(index).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
        padded = np.pad(mask, 1)
        inner = (
            padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
        hue = number / max(len(scene.objects), 1)
        canvas[mask & ~inner] = np.array(colorsys.hsv_to_rgb(hue, 1, 1)) * 255
    return canvas


def _labels(draw: ImageDraw.ImageDraw, scene: Scene, left: int, top: int) -> None:
    for index in scene.objects:
        rows, columns = np.nonzero(scene.visible_mask(index))
        x, y = left + columns.min() * _SCALE, top + rows.min() * _SCALE
        for dx, dy, ink in ((1, 1, 'black'), (0, 0, 'white')):
            draw.text((x + dx, y + dy), str(scene.items[index].category), fill=ink)


def contact_sheet(
    seed: int, split: str, count: int, config: SceneConfig | None = None
) -> np.ndarray:
    """Show the first scenes of a split.

    Args:
        seed (int): Of the dataset.
        split (str): Name of the split.
        count (int): Number of scenes.
        config (SceneConfig, optional): Defaults to ``SceneConfig()``.

    Returns:
        np.ndarray: RGB, uint8. Every scene takes one cell: the image, the same
        with its visible masks outlined and named, and one caption.
    """
    config = config or SceneConfig()
    edge = config.size * _SCALE
    line = 13
    cell_w, cell_h = 2 * edge + 12, edge + _TEXT_LINES * line + 8
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    sheet = Image.new('RGB', (columns * cell_w, rows * cell_h), 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for index in range(count):
        scene = sample_scene(seed, split, index, config)
        image = render(scene)
        left, top = index % columns * cell_w, index // columns * cell_h
        plain = image.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
        sheet.paste(Image.fromarray(plain), (left, top))
        sheet.paste(Image.fromarray(_outlined(scene, image)), (left + edge + 4, top))
        _labels(draw, scene, left + edge + 4, top)
        lines: list[str] = []
        for caption in islice(captions(scene), config.captions):
            lines += textwrap.wrap('- ' + caption, 2 * edge // 6)
        text = '\n'.join(lines[:_TEXT_LINES])
        draw.text((left + 2, top + edge + 2), text, fill='black', font=font)
    return np.asarray(sheet)
