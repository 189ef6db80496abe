"""Scenes: what lies where, and what of it can be seen."""

import zlib
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from .classes import outline, polygon_area
from .config import SceneConfig
from .textures import COLOURS, TEXTURES, sample_colour

# Alphas are rasterised this much finer than the image
_FINE = 4
_PLACE_TRIES = 24
_SCENE_TRIES = 20

_TURN = np.linspace(0, 2 * np.pi, 64, endpoint=False)
_UNIT_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_ALONG = np.linspace(0, 1, 32)

# Rows and columns of an image
Window = tuple[slice, slice]


def rasterise(points: np.ndarray, side: int) -> tuple[Window, np.ndarray]:
    """Rasterise a polygon with soft edges.

    Args:
        points (np.ndarray): In pixels, has shape (N, 2); pixel (x, y) covers
            [x, x + 1) x [y, y + 1).
        side (int): Side of the image.

    Returns:
        tuple: The window (rows, columns) of the image that the polygon touches,
        and the covered share of each pixel in it, float32 in [0, 1].
    """
    # One pixel more on every side, so that the window shows the whole edge
    low = np.clip(np.floor(points.min(axis=0)) - 1, 0, side).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low, side).astype(int)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    w, h = high - low
    if w == 0 or h == 0:
        return window, np.zeros((h, w), np.float32)
    fine = np.zeros((h * _FINE, w * _FINE), np.uint8)
    # cv2 counts pixel centres as integers, and the shift gives 1/16 pixels. It
    # fills whatever it touches: shapes grow by an eighth of an image pixel
    corners = np.rint(((points - low) * _FINE - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(fine, [corners], (255,), shift=4)
    alpha = cv2.resize(fine, (int(w), int(h)), interpolation=cv2.INTER_AREA)
    return window, alpha.astype(np.float32) / 255


@dataclass(frozen=True, eq=False)
class Item:
    """One painted polygon: an object of a class, or clutter without one.

    Args:
        category (str | None): The class; None for clutter.
        points (np.ndarray): Outline in pixels, has shape (N, 2).
        side (int): Side of the image in pixels.
        extent (float): Longest side as a share of the image side.
        colour (str): Name of its colour.
        rgb (np.ndarray): The shade of it, in [0, 1], has shape (3, ).
        texture (str): Name of its texture.
        contrast (float): 1 shows the full colour; less blends it with what
            lies underneath.
        seed (int): Of the texture's details.
    """

    category: str | None
    points: np.ndarray
    side: int
    extent: float
    colour: str
    rgb: np.ndarray
    texture: str
    contrast: float
    seed: int

    @property
    def faint(self) -> bool:
        """Whether its colour is too blended to be named."""
        return self.contrast < 1

    @cached_property
    def area(self) -> float:
        """Its full area in pixels, hidden and cut off parts included."""
        return polygon_area(self.points)

    @cached_property
    def coverage(self) -> tuple[Window, np.ndarray]:
        """See :func:`rasterise`."""
        return rasterise(self.points, self.side)


@dataclass(frozen=True, eq=False)
class Scene:
    """A sampled scene.

    Args:
        config (SceneConfig): What it was drawn under.
        items (tuple[Item, ...]): From back to front.
        owner (np.ndarray): Index of the item seen in each pixel, -1 for the
            background; has shape (size, size), int16.
        paint_seed (np.random.SeedSequence): Of background and sensor.
        caption_seed (np.random.SeedSequence): Of the captions' wording.
    """

    config: SceneConfig
    items: tuple[Item, ...]
    owner: np.ndarray
    paint_seed: np.random.SeedSequence
    caption_seed: np.random.SeedSequence

    @property
    def objects(self) -> list[int]:
        """Indices of the items that have a class, from back to front."""
        return [i for i, item in enumerate(self.items) if item.category is not None]

    def visible_mask(self, index: int) -> np.ndarray:
        """Where an item can be seen, bool, has shape (size, size)."""
        return self.owner == index

    def visible_share(self, index: int) -> float:
        """How much of an item's full area can be seen, in [0, 1]."""
        seen = np.count_nonzero(self.visible_mask(index))
        return min(seen / self.items[index].area, 1.0)


def _choose(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[rng.integers(len(names))]


def typical_colour(category: str, class_names: tuple[str, ...]) -> str:
    """The colour that most objects of a class wear if colours are typical."""
    names = list(COLOURS)
    return names[class_names.index(category) % len(names)]


def _fill(rng: np.random.Generator, faint_share: float) -> dict:
    colour = _choose(rng, tuple(COLOURS))
    faint = rng.random() < faint_share
    return dict(
        colour=colour,
        rgb=sample_colour(rng, colour),
        texture=_choose(rng, tuple(TEXTURES)),
        contrast=float(rng.uniform(0.3, 0.5)) if faint else 1.0,
        seed=int(rng.integers(2**31)),
    )


def _rotation(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def _blob(rng: np.random.Generator, side: int, max_extent: float) -> Item:
    # Uneven enough that it never passes for a circle or an ellipse
    heights, phases = rng.uniform(0.14, 0.34, 4), rng.uniform(0, 2 * np.pi, 4)
    waves = np.sin(np.outer([2, 3, 4, 5], _TURN) + phases[:, None])
    radius = 1 + heights @ waves
    points = np.maximum(radius, 0.2)[:, None] * _UNIT_CIRCLE
    points /= np.ptp(points, axis=0).max()
    extent = float(np.exp(rng.uniform(np.log(0.08), np.log(max_extent))))
    points = points * extent * side + rng.uniform(0, side, 2)
    return Item(None, points, side, extent, **_fill(rng, 0.4))


def _stroke(rng: np.random.Generator, side: int) -> Item:
    # Thin and wavy: a straight thick one would be a rectangle
    extent = float(rng.uniform(0.2, 0.8))
    t = _ALONG
    bend = rng.uniform(0.06, 0.16)
    waves = rng.uniform(0.8, 2.0)
    line = np.stack([t - 0.5, bend * np.sin(2 * np.pi * waves * t)], axis=1)
    line *= extent * side
    slope = np.diff(line, axis=0, append=2 * line[-1:] - line[-2:-1])
    normal = np.stack([-slope[:, 1], slope[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    width = rng.uniform(0.008, 0.028) * side * (0.4 + 0.6 * np.sin(np.pi * t))
    rim = normal * (width[:, None] / 2)
    points = np.concatenate([line + rim, (line - rim)[::-1]])
    points = points @ _rotation(rng.uniform(0, 2 * np.pi)) + rng.uniform(0, side, 2)
    return Item(None, points, side, extent, **_fill(rng, 0.2))


def _object(rng: np.random.Generator, config: SceneConfig, others: list[Item]) -> Item:
    side = config.size
    category = _choose(rng, config.class_names)
    fill = _fill(rng, 0.2 * config.clutter)
    if others and rng.random() < 0.3:
        # Captions such as 'two blue circles' need repeats
        model = others[rng.integers(len(others))]
        category = model.category or category
        if rng.random() < 0.5:
            fill |= dict(colour=model.colour, rgb=sample_colour(rng, model.colour))
        if rng.random() < 0.3:
            fill |= dict(texture=model.texture)
    # no draw at 0: older datasets keep their bytes
    if config.typical_colours and rng.random() < config.typical_colours:
        colour = typical_colour(category, config.class_names)
        fill |= dict(colour=colour, rgb=sample_colour(rng, colour))
    span = np.log([config.min_size, config.max_size])
    extent = float(np.exp(rng.uniform(*span)))
    points = outline(category, rng.random()) @ _rotation(rng.uniform(0, 2 * np.pi))
    points *= extent * side
    if others and rng.random() < 0.5:
        # Near another one, so that one hides part of the other
        near = others[rng.integers(len(others))]
        middle = (near.points.min(axis=0) + near.points.max(axis=0)) / 2
        away = rng.uniform(0.25, 0.55) * (near.extent + extent) * side
        centre = middle + _rotation(rng.uniform(0, 2 * np.pi))[0] * away
    else:
        # A quarter of its length may lie outside the image
        margin = extent * side / 4
        centre = rng.uniform(margin, side - margin, 2)
    return Item(category, points + centre, side, extent, **fill)


def _cover(owner: np.ndarray, index: int, item: Item) -> np.ndarray:
    window, alpha = item.coverage
    covered = owner.copy()
    covered[window][alpha >= 0.5] = index
    return covered


def _all_seen(owner: np.ndarray, items: list[Item], config: SceneConfig) -> bool:
    pixels = np.bincount(owner.ravel() + 1, minlength=len(items) + 1)[1:]
    return all(
        seen >= max(config.min_visible_share * item.area, config.min_visible_pixels)
        for seen, item in zip(pixels, items)
        if item.category is not None
    )


def _arrange(
    rng: np.random.Generator, config: SceneConfig
) -> tuple[list[Item], np.ndarray]:
    side = config.size
    blobs, strokes, front = (
        int(round(config.clutter * n))
        for n in (rng.integers(3, 9), rng.integers(2, 8), rng.choice([0, 0, 1, 2]))
    )
    items = [_blob(rng, side, 0.5) for _ in range(blobs)]
    items += [_stroke(rng, side) for _ in range(strokes)]
    items = [items[i] for i in rng.permutation(len(items))]
    owner = np.full((side, side), -1, np.int16)
    for index, item in enumerate(items):
        owner = _cover(owner, index, item)

    objects: list[Item] = []
    wanted = rng.integers(config.min_objects, config.max_objects + 1)
    tries = 0
    while len(objects) < wanted and tries < _PLACE_TRIES * wanted:
        tries += 1
        item = _object(rng, config, objects)
        covered = _cover(owner, len(items), item)
        # Whatever would hide too much, or be hidden, is never painted
        if _all_seen(covered, items + [item], config):
            objects.append(item)
            items.append(item)
            owner = covered

    for _ in range(front):
        # Clutter in front of the objects
        item = _stroke(rng, side) if rng.random() < 0.5 else _blob(rng, side, 0.25)
        covered = _cover(owner, len(items), item)
        if _all_seen(covered, items, config):
            items.append(item)
            owner = covered
    return items, owner


def sample_scene(
    seed: int, split: str, index: int, config: SceneConfig | None = None
) -> Scene:
    """Draw one scene, the same for the same arguments.

    Scenes of different splits or indices are independent draws. Splits other
    than those of a written dataset may be named freely, so an endless stream of
    fresh scenes is ``sample_scene(seed, 'stream', i)`` for i = 0, 1, 2, ...

    Args:
        seed (int): Of the dataset, not negative.
        split (str): Name of the split.
        index (int): Number of the image in its split, not negative.
        config (SceneConfig, optional): Defaults to ``SceneConfig()``.

    Returns:
        Scene: With at least ``config.min_objects`` objects.

    Raises:
        ValueError: If seed or index is negative.
        RuntimeError: If the config leaves no room for its objects.
    """
    config = config or SceneConfig()
    for name, value in (('seed', seed), ('index', index)):
        if value < 0:
            raise ValueError(f'{name} is {value}; it must not be negative')
    key = (zlib.crc32(split.encode()), index)
    scene_seed, paint_seed, caption_seed = np.random.SeedSequence(
        seed, spawn_key=key
    ).spawn(3)
    rng = np.random.default_rng(scene_seed)
    for _ in range(_SCENE_TRIES):
        items, owner = _arrange(rng, config)
        count = sum(item.category is not None for item in items)
        if count >= config.min_objects:
            return Scene(config, tuple(items), owner, paint_seed, caption_seed)
    raise RuntimeError(
        f'no room for {config.min_objects} objects in a scene of {config.size} px '
        f'after {_SCENE_TRIES} tries; lower min_objects, max_size or '
        f'min_visible_pixels ({config.min_visible_pixels})'
    )
