"""One bright object, random augmentations, and what must stay together.

For tests of online and of cached targets: hypothesis draws a :class:`Scene` and an
:class:`Augmentation`; :func:`augment` sends the one through the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import SampleList
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from scipy.spatial import KDTree
from torch import Tensor, nn

from lfi_mmdet.models.teachers.base import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
META_KEYS = (
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
    'flip_direction', 'homography_matrix',
)  # fmt: skip
#: Least side of an augmented image, and least share of it that the object spans
LEAST_SIDE, LEAST_SHARE = 16, 0.1


@dataclass(frozen=True)
class Scene:
    """A bright red object on dark noise.

    Attributes:
        shape: Height and width in pixels.
        kind: ``'rectangle'`` or ``'ellipse'``.
        centre: y and x, as shares of height and width.
        extent: Height and width of the object, likewise.
        seed: Of the noise.
    """

    shape: tuple[int, int]
    kind: str
    centre: tuple[float, float]
    extent: tuple[float, float]
    seed: int

    def mask(self) -> np.ndarray:
        """Where the object is, uint8 (height, width)."""
        offsets = [
            ((np.arange(n) + 0.5) / n - centre) / (extent / 2)
            for n, centre, extent in zip(self.shape, self.centre, self.extent)
        ]
        y, x = np.abs(offsets[0])[:, None], np.abs(offsets[1])[None]
        inside = y**2 + x**2 if self.kind == 'ellipse' else np.maximum(y, x)
        return (inside <= 1).astype(np.uint8)

    def image(self) -> np.ndarray:
        """Pixels in BGR, as mmdet loads them, uint8 (height, width, 3)."""
        noise = np.random.default_rng(self.seed).integers(0, 25, (*self.shape, 3))
        noise[self.mask() == 1] = (20, 20, 240)
        return noise.astype(np.uint8)

    def results(self) -> dict:
        """What the loading transforms of mmdet would return."""
        mask = self.mask()
        rows, cols = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        box = [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]
        return dict(
            img=self.image(),
            img_id=self.seed,
            img_path=f'{self.seed}.png',
            img_shape=self.shape,
            ori_shape=self.shape,
            gt_bboxes=HorizontalBoxes(torch.tensor([box], dtype=torch.float32)),
            gt_bboxes_labels=np.zeros(1, np.int64),
            gt_ignore_flags=np.zeros(1, bool),
            gt_masks=BitmapMasks(mask[None], *self.shape),
        )


@dataclass(frozen=True)
class Augmentation:
    """Transforms of mmdet.

    Attributes:
        transforms: Their configs, without loading and packing.
        seed: Of what they draw themselves.
    """

    transforms: tuple[dict, ...]
    seed: int


@st.composite
def scenes(draw: Callable) -> Scene:
    """Images of 40-200 pixels per side with one object somewhere in them."""
    extent = draw(st.tuples(st.floats(0.15, 0.5), st.floats(0.15, 0.5)))
    return Scene(
        shape=draw(st.tuples(st.integers(40, 200), st.integers(40, 200))),
        kind=draw(st.sampled_from(['rectangle', 'ellipse'])),
        centre=tuple(draw(st.floats(side / 2, 1 - side / 2)) for side in extent),
        extent=extent,
        seed=draw(st.integers(0, 2**16)),
    )


@st.composite
def augmentations(draw: Callable) -> Augmentation:
    """Random resize, flip and crop, each or not, in any order."""
    resize = dict(
        type='RandomResize',
        scale=draw(st.sampled_from([(160, 224), (200, 120), (96, 256)])),
        ratio_range=(0.6, 1.5),
        keep_ratio=draw(st.booleans()),
    )
    directions = ['horizontal', 'vertical', 'diagonal']
    flip = dict(
        type='RandomFlip', prob=1.0, direction=draw(st.sampled_from(directions))
    )
    size = draw(st.tuples(st.floats(0.5, 0.9), st.floats(0.5, 0.9)))
    crop = dict(type='RandomCrop', crop_size=size, crop_type='relative_range')
    order = draw(st.permutations([resize, flip, crop]))
    count = draw(st.integers(0, 3))
    return Augmentation(tuple(order[:count]), draw(st.integers(0, 2**16)))


def batches() -> st.SearchStrategy[list[tuple[Scene, Augmentation]]]:
    """One to three images, each with transforms of its own."""
    return st.lists(st.tuples(scenes(), augmentations()), min_size=1, max_size=3)


def preprocessings() -> st.SearchStrategy[dict]:
    """Arguments of :func:`preprocess`; padding is black, grey or bright."""
    return st.fixed_dictionaries(
        dict(
            bgr_to_rgb=st.booleans(),
            normalise=st.booleans(),
            pad_size_divisor=st.sampled_from([1, 16, 32]),
            pad_value=st.sampled_from([0, 2.5, 255]),
        )
    )


def augment(scene: Scene, augmentation: Augmentation) -> dict:
    """Send a scene through real transforms, until enough of its object is left.

    Returns:
        ``inputs`` and ``data_samples``, packed with :data:`META_KEYS`.
    """
    pack = dict(type='PackDetInputs', meta_keys=META_KEYS)
    pipeline = Compose(
        [TRANSFORMS.build(one) for one in (*augmentation.transforms, pack)]
    )
    for attempt in range(50):
        np.random.seed(augmentation.seed + attempt)
        packed = pipeline(scene.results())
        if packed is not None and _shows_enough(packed['data_samples']):
            return packed
    raise AssertionError(f'{augmentation} leaves nothing of {scene}')


def _shows_enough(sample: object) -> bool:
    """Whether the object spans a tenth of a not too small image in both axes."""
    mask = object_of(sample)
    spans = [mask.any(1 - axis).mean() for axis in (0, 1)]
    return min(mask.shape) >= LEAST_SIDE and min(spans) >= LEAST_SHARE


def object_of(sample: object) -> np.ndarray:
    """Mask of the object in the unpadded image, bool (height, width)."""
    masks = sample.gt_instances.masks.to_ndarray()  # type: ignore[attr-defined]
    height, width = sample.img_shape[:2]  # type: ignore[attr-defined]
    return masks[0, :height, :width] > 0


def preprocess(
    packed: Sequence[dict],
    bgr_to_rgb: bool = True,
    normalise: bool = True,
    pad_size_divisor: int = 1,
    pad_value: float = 0,
) -> tuple[Tensor, SampleList, nn.Module]:
    """Batch the images as a student gets them, with mmdet's own preprocessor."""
    stats = dict(mean=MEAN, std=STD) if normalise else {}
    preprocessor = MODELS.build(
        dict(
            type='DetDataPreprocessor',
            bgr_to_rgb=bgr_to_rgb,
            pad_size_divisor=pad_size_divisor,
            pad_value=pad_value,
            **stats,
        )
    )
    data = dict(
        inputs=[one['inputs'] for one in packed],
        data_samples=[one['data_samples'] for one in packed],
    )
    data = preprocessor(data, training=True)
    return data['inputs'], data['data_samples'], preprocessor


class BrightnessTeacher(FrozenTeacher):
    """Attends to red, and in each patch to its own pixels only.

    Args:
        size: Height and width of its input.
        patch: Side of its patches.
        **common: For :class:`FrozenTeacher`.
    """

    def __init__(
        self, size: tuple[int, int] = (32, 48), patch: int = 4, **common: object
    ) -> None:
        super().__init__(view=dict(size=size), present='all', **common)  # type: ignore[arg-type]
        self.patch, self.grid_size = patch, (size[0] // patch, size[1] // patch)
        self.set_class_names(['object'])

    @property
    def num_layers(self) -> int:
        """One layer."""
        return 1

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """It reads no texts."""

    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """Mean of the red channel in each patch, above the noise."""
        red = images[:, :1] * self.view.std[0] + self.view.mean[0]
        weight = (F.avg_pool2d(red, self.patch) - 0.1).clamp(min=0) + 1e-6
        mass = weight.sum((-2, -1), keepdim=True)
        assert present is not None
        return InteractionTargets(
            maps=(weight / mass)[:, None],
            present=present,
            log_mass=mass[:, None, :, 0, 0].log(),
        )


@dataclass
class Drift:
    """How far a map is from the object, in patches, along rows and columns.

    Attributes:
        centre: From the centre of the map's mass to that of the object.
        peak: From the centre of the strongest patch to the nearest pixel of the
            object.
        outside: Share of the map in patches whose centre is farther than a patch from
            every pixel of the object.
    """

    centre: float
    peak: float
    outside: float


def drift(
    attention: Tensor,
    mask: np.ndarray,
    extent: tuple[float, float],
    patch: tuple[float, float] | None = None,
) -> Drift:
    """Measure how far a map is from the object.

    Args:
        attention: (h, w), sums to 1.
        mask: The object, bool, in pixels of the unpadded image.
        extent: Height and width in pixels that the map covers.
        patch: Unit of the result in pixels; None for the map's own patches.
    """
    weights = attention.double().numpy()
    steps = [side / count for side, count in zip(extent, weights.shape)]
    unit = np.array(patch or steps)
    cells = [(np.arange(n) + 0.5) * step for n, step in zip(weights.shape, steps)]
    grid = np.stack(np.meshgrid(*cells, indexing='ij'), -1)
    pixels = np.argwhere(mask) + 0.5
    centre = (grid * weights[..., None]).sum((0, 1)) / weights.sum()
    # within a patch means in both directions
    nearest, _ = KDTree(pixels / unit).query(grid / unit, p=np.inf)
    return Drift(
        centre=float((np.abs(centre - pixels.mean(0)) / unit).max()),
        peak=float(nearest.flat[weights.argmax()]),
        outside=float(weights[nearest > 1].sum() / weights.sum()),
    )
