"""Which transforms say where they move pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import mmcv.transforms
import mmdet.datasets.transforms.transforms
import mmengine.dataset

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

    A homography tells where pixels are, but not which are lost: after a crop, nothing
    may extend the image, or move it in its frame, since filling would then pass for
    what was there before. Padding a crop to its own size is no problem.

    Args:
        transforms: Built transforms.
        allowed: Names of further classes whose user vouches that they update
            ``homography_matrix`` or move no pixels; also of known ones that would be
            refused.
        key: Where the transforms stand in the config, for messages.
        still: Whether only transforms that move no pixels may pass.
        first: Number of the first of them, for messages.

    Returns:
        What they may do, a part of :data:`ALL`.

    Raises:
        InputError: If one does not, or is not known. The message names it.
    """
    walk = _Walk(allowed)
    walk.steps(transforms, key, still, first)
    return frozenset(walk.found)


@dataclass(frozen=True)
class _Lost:
    """Part of an image is gone.

    Attributes:
        name: Of the transform that has cut it off.
        size: Width and height that are left where anything was cut off; None if that
            is not known.
    """

    name: str
    size: tuple[int, int] | None


class _Walk:
    """Goes through a pipeline, transform by transform.

    Args:
        allowed: See :func:`check_geometry`.

    Attributes:
        found: What the transforms so far may do.
        lost: What they may have cut off.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        self.allowed = allowed
        self.found: set[str] = set()
        self.lost: _Lost | None = None

    def steps(self, steps: Iterable[Any], key: str, still: bool, first: int) -> None:
        """Go through transforms that run one after the other."""
        for i, step in enumerate(steps, first):
            self.step(step, f'{key}.{i}', still)

    def step(self, step: Any, key: str, still: bool) -> None:
        """Go through one transform."""
        kind = type(step)
        if _name(step) in self.allowed:
            self.found |= ALL
        elif kind in _WRAPPING_TYPES:
            self._wrapper(step, key, still)
        elif kind in _RESIZING_TYPES and not still:
            self.step(step.resize, f'{key}.resize_type', still)
        elif kind in _MOVING_TYPES and not still:
            self._moving(step, key)
        elif kind not in _STILL_TYPES or _distorts(step):
            raise InputError(_refusal(step, key, still))

    def _wrapper(self, step: Any, key: str, still: bool) -> None:
        name, key = type(step).__name__, f'{key}.transforms'
        inner: Any = step.transforms
        inner = list(getattr(inner, 'transforms', inner))
        # what is reported inside a mapping of keys is lost outside of it
        still |= any(getattr(step, m, None) for m in ('mapping', 'remapping'))
        if isinstance(step, mmcv.transforms.RandomChoice):
            for _ in range(getattr(step, 'aug_num', 1)):  # RandAugment
                self._one_of([[branch] for branch in inner], key, still)
        elif name == 'RandomApply':
            self._one_of([inner, []], key, still)
        else:
            # twice, so that each has also been before each other
            for _ in range(2 if name == 'RandomOrder' else 1):
                self.steps(inner, key, still, 0)

    def _one_of(self, branches: list[list[Any]], key: str, still: bool) -> None:
        before, after = self.lost, set()
        for i, branch in enumerate(branches):
            self.lost = before
            self.steps(branch, key, still, i)
            after.add(self.lost)
        lost = sorted((one for one in after if one), key=lambda one: one.name)
        self.lost = lost[0] if lost else None
        if len(lost) > 1:
            self.lost = _Lost(lost[0].name, None)

    def _moving(self, step: Any, key: str) -> None:
        does = set(_MOVING_TYPES[type(step)])
        if not getattr(step, 'keep_ratio', True):  # FixShapeResize
            does.discard(PAD)
        if self.lost and does & {PAD, MOVE} and not _fits(step, self.lost.size):
            raise InputError(
                f'{key}: {_name(step)} fills up what {self.lost.name} before it may '
                'have cut off; cached targets would take the filling for the image. '
                'Put it in front, let data_preprocessor.pad_size_divisor do the '
                'padding, crop to the size that is padded to, or, if that does not '
                f"matter to you, write LoadCachedTargets(allowed=('{_name(step)}',))"
            )
        if CUT in does or MOVE in does:
            absolute = getattr(step, 'crop_type', None) == 'absolute' and not self.lost
            self.lost = _Lost(_name(step), tuple(step.crop_size) if absolute else None)
        elif self.lost and hasattr(step, 'clip_object_border'):  # all that resize
            self.lost = _Lost(self.lost.name, None)
        self.found |= does


def _fits(step: Any, size: tuple[int, int] | None) -> bool:
    """Whether padding adds nothing to a side that was cut to this size."""
    if size is None or not hasattr(step, 'pad_to_square'):
        return False
    if step.pad_to_square and size[0] != size[1]:
        return False
    divisor = step.size_divisor or 1
    return (step.size is None or tuple(step.size) == size) and not any(
        side % divisor for side in size
    )


def _distorts(step: Any) -> bool:
    """Whether a transform of colours moves pixels after all."""
    return getattr(step, 'corruption', None) == 'elastic_transform'


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
