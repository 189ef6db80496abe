"""Which transforms say where they move pixels, and whether what they say is true."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import mmcv.transforms
import mmdet.datasets.transforms.transforms
import mmengine.dataset
import numpy as np

from lfi_mmdet.engine.preflight import InputError

from .load_captions import LoadCaptions
from .pack_interaction_inputs import PackInteractionInputs

#: What a pipeline may do to an image: show a part of it; add something at the right
#: and at the bottom; move, rotate or shear it
CUT, PAD, MOVE = 'cut', 'pad', 'move'
ALL = frozenset((CUT, PAD, MOVE))

# By name, since versions and forks of mmdet differ in what they have. What counts is
# the class itself: a subclass may do anything.
_STILL = (
    'LoadImageFromFile LoadImageFromNDArray LoadMultiChannelImageFromFiles '
    'LoadAnnotations LoadPanopticAnnotations LoadEmptyAnnotations LoadProposals '
    'LoadTextAnnotations RandomSamplingNegPos FilterAnnotations GTBoxSubOne_GLIP '
    'SegRescale Normalize RandomGrayscale PhotoMetricDistortion YOLOXHSVRandomAug '
    'ColorTransform Color Brightness Contrast Sharpness Solarize SolarizeAdd Posterize '
    'Equalize AutoContrast Invert Corrupt CutOut RandomErasing PackDetInputs'
).split()
_MOVING = dict(
    Resize=(),
    FixScaleResize=(),
    FixShapeResize=(PAD,),
    RandomFlip=(),
    RandomFlip_GLIP=(),
    RandomCrop=(CUT,),
    **dict.fromkeys(
        ('ShearX', 'ShearY', 'Rotate', 'TranslateX', 'TranslateY'), (MOVE,)
    ),
)
_RESIZING = ('RandomResize', 'RandomChoiceResize', 'ResizeShortestEdge')
_WRAPPING = (
    'Compose RandomApply RandomChoice RandomOrder AutoAugment RandAugment '
    'ProposalBroadcaster KeyMapper TransformBroadcaster'
).split()
#: What is known not to report, and why it cannot be followed
_SILENT = dict.fromkeys(
    ('Mosaic', 'CachedMosaic', 'MixUp', 'CachedMixUp', 'CopyPaste'),
    'puts several images into one',
)


def _classes(names: Iterable[str], *modules: Any) -> set[type]:
    found = (getattr(module, name, None) for name in names for module in modules)
    return {kind for kind in found if isinstance(kind, type)}


_MMCV = (mmcv.transforms,)
_MMDET = (mmdet.datasets.transforms, mmdet.datasets.transforms.transforms)
# of a name that both have, mmcv's class reports nothing
_STILL_TYPES = _classes(_STILL, *_MMCV, *_MMDET) | {LoadCaptions, PackInteractionInputs}
_MOVING_TYPES = {
    kind: frozenset(what)
    for name, what in _MOVING.items()
    for kind in _classes((name,), *_MMDET)
}
_MOVING_TYPES.update(
    dict.fromkeys(_classes(('Pad',), *_MMCV, *_MMDET), frozenset({PAD}))
)
_RESIZING_TYPES = _classes(_RESIZING, *_MMCV, *_MMDET)
_WRAPPING_TYPES = _classes(_WRAPPING, *_MMCV, *_MMDET) | {mmengine.dataset.Compose}


def check_geometry(
    transforms: Iterable[Any],
    allowed: Collection[str] = (),
    key: str = 'pipeline',
    still: bool = False,
    first: int = 0,
) -> frozenset[str]:
    """Check that every transform tells where it moves pixels, or moves none.

    Known are mmdet's and mmcv's own classes, read one by one: those that write
    ``homography_matrix``, those that leave pixels where they are (photometric ones,
    loaders, filters), padding at the bottom and at the right, and wrappers, if what
    they wrap passes. Classes of other libraries and projects have to be ``allowed``.

    Args:
        transforms: Built transforms.
        allowed: Names of further classes whose user vouches that they update
            ``homography_matrix`` or move no pixels.
        key: Where the transforms stand in the config, for messages.
        still: Whether only transforms that move no pixels may pass.
        first: Number of the first of them, for messages.

    Returns:
        What they may do, a part of :data:`ALL`.

    Raises:
        InputError: If one does not, or is not known. The message names it.
    """
    found: set[str] = set()
    for i, transform in enumerate(transforms, first):
        found |= _check(transform, allowed, f'{key}.{i}', still)
    return frozenset(found)


def _check(
    transform: Any, allowed: Collection[str], key: str, still: bool
) -> frozenset[str]:
    kind = type(transform)
    if _name(transform) in allowed:
        return ALL
    if kind in _WRAPPING_TYPES:
        # what is reported inside a mapping of keys is lost outside of it
        mapped = [getattr(transform, m, None) for m in ('mapping', 'remapping')]
        return check_geometry(
            _inner(transform), allowed, f'{key}.transforms', still or any(mapped)
        )
    if kind in _RESIZING_TYPES and not still:
        return _check(transform.resize, allowed, f'{key}.resize_type', still)
    if kind in _MOVING_TYPES and not still:
        pads = getattr(transform, 'keep_ratio', True)  # FixShapeResize
        return _MOVING_TYPES[kind] - (frozenset() if pads else {PAD})
    if kind in _STILL_TYPES and getattr(transform, 'corruption', '') != (
        'elastic_transform'
    ):
        return frozenset()
    raise InputError(_refusal(transform, key, still))


def _inner(transform: Any) -> Iterator[Any]:
    """The transforms inside a wrapper; RandomChoice has lists of them."""
    inner = getattr(transform, 'transforms', ())
    yield from getattr(inner, 'transforms', inner)


def _name(transform: Any) -> str:
    return getattr(transform, '__name__', None) or type(transform).__name__


def _refusal(transform: Any, key: str, still: bool) -> str:
    kind, name = type(transform), _name(transform)
    known = kind in _MOVING_TYPES or kind in _RESIZING_TYPES
    if known and still:
        return (
            f'{key}: {name} moves pixels where cached targets cannot follow; it has to '
            'stand before LoadCachedTargets, and not inside a KeyMapper or '
            'TransformBroadcaster, which drop its homography_matrix'
        )
    if _classes((name,), *_MMDET) and kind.__module__.startswith('mmcv.'):
        return (
            f"{key}: this is mmcv's {name}, which does not report its geometry; write "
            f"'mmdet.{name}', so that cached targets can follow"
        )
    if kind.__module__.startswith(('mmdet.', 'mmcv.')):
        why = _SILENT.get(name, 'moves pixels and does not report it')
        return (
            f'{key}: {name} {why}; cached targets would drift from the image. Take it '
            'out of the pipeline, or train with the teacher itself instead of '
            'CachedTeacher'
        )
    return (
        f'{key}: {name} ({kind.__module__}) is not known to report its geometry, so '
        'cached targets might drift from the image. If it moves no pixels, or '
        f"multiplies results['homography_matrix'] by its own matrix, write "
        f"LoadCachedTargets(allowed=('{name}',)); "
        'otherwise take it out of the pipeline, or train with the teacher itself '
        'instead of CachedTeacher'
    )


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
            to see.
    """
    matrix = np.eye(3) if homography is None else np.asarray(homography, np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(f'homography_matrix={matrix.tolist()} is not 3 x 3 and finite')
    height, width = ori_shape[:2]
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1] * 4])
    x, y, scale = matrix @ corners
    if scale.min() <= 0 or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError(
            f'homography_matrix={matrix.tolist()} maps the image onto a line'
        )
    x, y = x / scale, y / scale
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
    size = np.array(img_shape[1::-1], float)
    if (high <= 0).any() or (low >= size).any():
        raise ValueError(
            f'homography_matrix={matrix.tolist()} leaves nothing to see of an image of '
            f'{tuple(ori_shape[:2])} in one of {tuple(img_shape[:2])} pixels'
        )
    return (
        float(max(low.max(), (size - high).max(), 0)),
        float(max((-low).max(), (high - size).max(), 0)),
    )
