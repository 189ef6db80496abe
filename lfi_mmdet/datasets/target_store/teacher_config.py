"""Teachers' configs in one plain form, so that two of them can be compared."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from mmdet.registry import MODELS

#: Do not change what a teacher sees; class names are kept and compared on their own
_LEFT_OUT = ('_scope_', 'cache_dir', 'class_names')
#: Arguments that may be files, of which the folder does not matter
_FILES = ('model_configs', 'pretrained', 'tokenizer')


def inner_teacher(cfg: Mapping[str, Any], key: str = 'model.teacher') -> dict:
    """Return the config of the teacher whose targets are to be cached.

    Args:
        cfg: Config of a teacher; that of a ``CachedTeacher`` names another one.
        key: Where it stands in the config, for messages.

    Raises:
        ValueError: If it is no config, or a ``CachedTeacher`` names no teacher.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise ValueError(f'{key}={cfg!r} is not a config with a "type"')
    if _type_name(cfg) != 'CachedTeacher':
        return dict(cfg)
    if not cfg.get('teacher'):
        raise ValueError(
            f'{key} is a CachedTeacher that does not say which teacher is cached; '
            f"write {key}.teacher=dict(type='CoCaTeacher', ...)"
        )
    return inner_teacher(cfg['teacher'], f'{key}.teacher')


def more_texts(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts that a teacher has beyond the classes, as its config says.

    Args:
        cfg: Config of a teacher; of several in one the first, since all share them.
    """
    for inner in [*cfg.get('teachers', ()), cfg.get('teacher')]:
        if inner:
            return more_texts(inner)
    return tuple(cfg.get('more_texts', ()))


def plain_teacher(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the config of a teacher into the form that stores keep.

    - What does not change the targets is left out: folders of downloads, and
      arguments that are given but equal to their default.
    - Of a file only the name is left.
    - Tuples become lists, classes their names.

    Two configs in this form are equal if the teachers are, as long as the defaults of
    their arguments stay the same (:data:`.meta.TARGETS_VERSION` says so).
    """
    return _plain(cfg)


def _plain(value: Any, key: str = '') -> Any:
    if isinstance(value, Mapping):
        defaults = _defaults(value) if 'type' in value else {}
        plain = {
            str(name): _plain(inner, str(name))
            for name, inner in value.items()
            if name not in _LEFT_OUT
        }
        if 'type' in value:
            plain['type'] = _type_name(value)
        return {
            name: inner
            for name, inner in sorted(plain.items())
            if name == 'type' or name not in defaults or inner != defaults[name]
        }
    if isinstance(value, list | tuple):
        return [_plain(inner, key) for inner in value]
    if isinstance(value, str) and (key in _FILES or value.startswith(('/', '~', '.'))):
        return os.path.basename(value.rstrip('/'))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, '__name__', None) or str(value)


def _type_name(cfg: Mapping[str, Any]) -> str:
    found = cfg.get('type')
    name = found if isinstance(found, str) else getattr(found, '__name__', str(found))
    return name.rsplit('.', 1)[-1]


def _defaults(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the arguments of a registered class and of those it derives from."""
    found = cfg['type']
    if isinstance(found, str):
        found = MODELS.get(found)
    if not inspect.isclass(found):
        return {}
    defaults: dict[str, Any] = {}
    for owner in reversed(found.__mro__):
        constructor = vars(owner).get('__init__')
        if inspect.isfunction(constructor):
            for name, parameter in inspect.signature(constructor).parameters.items():
                defaults.pop(name, None)
                if parameter.default is not inspect.Parameter.empty:
                    defaults[name] = _plain(parameter.default, name)
    return defaults
