"""Turns the config of a detector into that of its LFI twin."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from mmdet.registry import MODELS
from mmengine.config import Config

from lfi_mmdet.engine.hooks import ClassNamesHook
from lfi_mmdet.models.backbones import QueryMixin
from lfi_mmdet.models.detectors import LFIMixin

C = TypeVar('C', Config, dict)


def lfi(
    cfg: C,
    teacher: dict | None,
    interaction: dict | None = None,
    distiller: dict | None = None,
    **settings: Any,
) -> C:
    """Add LFI to a config.

    The detector and its backbone may be of any package. In a config in Python style::

        model = __import__('lfi_mmdet').lfi(model, teacher=dict(...))
        default_hooks.update(class_names=dict(type='ClassNamesHook'))

    since mmengine does not let such a config call what it imports by a statement. A
    whole config gets the hook, which gives the teacher the names of the dataset's
    classes; a ``model`` alone cannot.

    Args:
        cfg: A whole config or its ``model``; is not changed.
        teacher: Config of a :class:`FrozenTeacher`; None for the queries alone.
        interaction: Arguments of :func:`InteractionBackbone` but ``backbone``; None for
            its defaults, one query per class. Not for backbones that have queries.
        distiller: Config of a :class:`Distiller`; None for :func:`default_distiller`.
        **settings: Further ones of :class:`LFIMixin`.

    Returns:
        The same kind of config.

    Raises:
        KeyError: If the detector is not registered.
        ValueError: If the config has LFI already, or no model.
    """
    cfg = copy.deepcopy(cfg)
    whole = isinstance(cfg, Config) or isinstance(cfg.get('model'), Mapping)
    model: Any = cfg.get('model') if whole else cfg
    if not isinstance(model, dict) or 'type' not in model:
        raise ValueError('the config has no model with a "type"')
    kind = model['type']
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise KeyError(
            f'model.type={kind!r} is not registered; import its package first, or list '
            'it in custom_imports'
        )
    if isinstance(found, type) and issubclass(found, LFIMixin):
        raise ValueError(f'model.type={kind!r} has LFI already')
    named = isinstance(kind, str) and f'LFI{kind}' in MODELS.module_dict
    changes: dict[str, Any] = dict(type=f'LFI{kind}' if named else 'LFIDetector')
    if not named:
        changes['detector'] = kind
    if interaction is not None or not _has_queries(model.get('backbone')):
        changes['interaction'] = dict(interaction or {})
    if distiller is not None:
        changes['distiller'] = distiller
    model.update(changes, teacher=teacher, **settings)
    if whole:
        imports = dict(cfg.get('custom_imports') or {})
        names: list[str] = list(imports.get('imports') or [])
        if 'lfi_mmdet' not in names:
            cfg['custom_imports'] = dict(imports, imports=[*names, 'lfi_mmdet'])
        hooks: dict[str, Any] = dict(cfg.get('default_hooks') or {})
        custom: list[Any] = list(cfg.get('custom_hooks') or [])
        if not any(_is_class_names(hook) for hook in (*hooks.values(), *custom)):
            hooks['class_names'] = dict(type='ClassNamesHook')
            cfg['default_hooks'] = hooks
    return cfg


def _is_class_names(hook: Any) -> bool:
    kind = hook.get('type') if isinstance(hook, Mapping) else type(hook)
    return kind in ('ClassNamesHook', ClassNamesHook)


def _has_queries(backbone: Any) -> bool:
    kind = backbone.get('type') if isinstance(backbone, Mapping) else None
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if isinstance(found, type):
        return issubclass(found, QueryMixin)
    return getattr(found, '__name__', None) == 'InteractionBackbone'
