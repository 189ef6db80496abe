"""Any detector with Learning from Interactions, without a class of its own."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import BaseDetector, SemiBaseDetector
from mmdet.registry import MODELS
from mmengine.registry import Registry

from lfi_mmdet.models.utils.derived_class import derived_class
from lfi_mmdet.registry import find_part

from .lfi_mixin import LFIMixin


def lfi_class(detector: type) -> type:
    """The class of a detector with LFI, made once.

    Args:
        detector: Class of an mmdet detector.

    Returns:
        A class derived from :class:`LFIMixin` and ``detector``; its own if it has LFI
        already.

    Raises:
        TypeError: If it is no detector.
    """
    if not (isinstance(detector, type) and issubclass(detector, BaseDetector)):
        raise TypeError(f'{detector!r} is no detector of mmdet')
    if issubclass(detector, LFIMixin):
        return detector
    name = f'LFI{detector.__name__}'
    known = MODELS.module_dict.get(name)
    if isinstance(known, type) and set(known.__bases__) == {LFIMixin, detector}:
        return known  # written out, such as LFIMaskRCNN
    doc = f':class:`{detector.__name__}` with a teacher, see :class:`LFIMixin`.'
    return derived_class(LFIMixin, detector, 'LFI', doc)


def register_lfi_classes(registry: Registry = MODELS) -> list[str]:
    """Register ``LFI<name>`` for every detector that is registered so far.

    Detectors that are registered later, as those of a project, take
    :func:`LFIDetector`, or this function once more.

    Args:
        registry: Where detectors are looked up and registered.

    Returns:
        The names that are new.

    Raises:
        KeyError: If another package has taken one of the names.
    """
    new = []
    for name, kind in list(registry.module_dict.items()):
        if not (isinstance(kind, type) and issubclass(kind, BaseDetector)):
            continue
        if issubclass(kind, (LFIMixin, SemiBaseDetector)):
            continue  # the latter wrap a detector, which may have LFI
        ours, taken = lfi_class(kind), registry.module_dict.get(f'LFI{name}')
        if taken is None:
            registry.register_module(name=f'LFI{name}', module=ours)
            new.append(f'LFI{name}')
        elif not (isinstance(taken, type) and issubclass(taken, (LFIMixin, kind))):
            raise KeyError(
                f'LFI{name} is registered by {taken.__module__}, which is not '
                f'lfi_mmdet; import lfi_mmdet first, or call {name} with LFI by '
                f"type='LFIDetector', detector='{name}'"
            )
    return new


@MODELS.register_module()
def LFIDetector(detector: str | type, **settings: Any) -> LFIMixin:  # noqa: N802 - a type
    """Any registered detector with LFI: the way for those of other packages.

    In a config that inherits from one of ``MyDetector``::

        model = dict(type='LFIDetector', detector='MyDetector',
                     interaction=dict(num_queries=80), teacher=...)

    Args:
        detector: Name or class of the detector.
        **settings: For the detector and :class:`LFIMixin`.

    Returns:
        The detector.

    Raises:
        KeyError: If no such detector is registered.
        TypeError: If it is no detector.
    """
    kind = find_part(dict(type=detector), BaseDetector, 'model.detector')
    return lfi_class(kind)(**settings)
