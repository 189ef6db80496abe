"""What a scene may contain."""

from dataclasses import asdict, dataclass
from typing import Any

from .classes import choose_classes
from .styles import check_domain

MIN_IMAGE_SIZE = 48
MAX_OBJECTS = 12


@dataclass(frozen=True)
class SceneConfig:
    """The choices that scenes are drawn under.

    Together with a seed it decides every byte of a dataset. The domain changes
    only how a scene is painted: the same seed gives the same objects, at the
    same places, in every domain.

    Args:
        size (int): Side of the square images in pixels. Defaults to 128.
        classes (int | tuple[str, ...]): A number (the first so many of
            ``SHAPE_CLASSES``) or the names, 8 to 16 of them. Stored as names.
            Defaults to 12.
        domain (str): Painting style. Defaults to 'photo'.
        min_objects (int): Fewest objects in a scene. Defaults to 1.
        max_objects (int): Most objects in a scene. Defaults to 6.
        min_size (float): Shortest longest side of an object, as a share of the
            image side. Sizes are log-uniform. Defaults to 0.12.
        max_size (float): Longest one. Defaults to 0.55.
        clutter (float): How much distracts from the objects, from 0 to 1: number
            of blobs and strokes that belong to no class, and share of objects in
            faint colours. Defaults to 0.3.
        typical_colours (float): Share of objects in the colour of their class, as
            most bananas are yellow; the rest wears any colour. At 0 only the
            outline tells the classes apart, which takes long to learn from
            scratch. Defaults to 0.
        min_visible_share (float): Objects are placed such that this share of
            each one's full area stays in sight. Defaults to 0.25.
        min_visible_pixels (int): And this many pixels. Defaults to 12.
        captions (int): Captions per image. Defaults to 3.

    Raises:
        ValueError: If a value is out of its range.
    """

    size: int = 128
    classes: int | tuple[str, ...] = 12
    domain: str = 'photo'
    min_objects: int = 1
    max_objects: int = 6
    min_size: float = 0.12
    max_size: float = 0.55
    clutter: float = 0.3
    typical_colours: float = 0.0
    min_visible_share: float = 0.25
    min_visible_pixels: int = 12
    captions: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, 'classes', choose_classes(self.classes))
        check_domain(self.domain)
        if self.size < MIN_IMAGE_SIZE:
            raise ValueError(f'size is {self.size}; at least {MIN_IMAGE_SIZE} pixels')
        if not 1 <= self.min_objects <= self.max_objects <= MAX_OBJECTS:
            raise ValueError(
                f'min_objects is {self.min_objects} and max_objects is '
                f'{self.max_objects}; needs 1 <= min <= max <= {MAX_OBJECTS}'
            )
        if not 0 < self.min_size <= self.max_size <= 1:
            raise ValueError(
                f'min_size is {self.min_size} and max_size is {self.max_size}; '
                'needs 0 < min <= max <= 1'
            )
        for name in ('clutter', 'typical_colours'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} is {getattr(self, name)}; choose 0 to 1')
        if not 0 < self.min_visible_share <= 0.9:
            raise ValueError(
                f'min_visible_share is {self.min_visible_share}; needs 0 < share <= 0.9'
            )
        if self.min_visible_pixels < 1:
            raise ValueError(
                f'min_visible_pixels is {self.min_visible_pixels}; at least 1'
            )
        if not 1 <= self.captions <= 50:
            raise ValueError(f'captions is {self.captions}; choose 1 to 50')

    @property
    def class_names(self) -> tuple[str, ...]:
        """The resolved class names, in the order of their category ids."""
        assert not isinstance(self.classes, int)  # resolved in __post_init__
        return self.classes

    def to_dict(self) -> dict[str, Any]:
        """All choices as plain JSON values."""
        return asdict(self) | {'classes': list(self.class_names)}
