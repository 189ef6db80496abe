"""Build our parts from configs, with errors that name the choices."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar, cast

from mmdet.registry import MODELS

T = TypeVar('T')


def find_part(cfg: dict, base: Callable[..., T], key: str) -> type[T]:
    """Find the registered subclass of ``base`` that a config names.

    Args:
        cfg: Config with ``type``.
        base: Class, possibly abstract, that the found one must derive from.
        key: Where ``cfg`` stands in the config, for error messages.

    Raises:
        KeyError: If no such class is registered.
        TypeError: If ``cfg`` has no type, or the class is of another kind.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(f'{key}={cfg!r} is not a config with a "type"')
    parent = cast(type, base)  # typed as a callable: mypy wants no abstract type[T]
    found = cfg['type']
    if isinstance(found, str):
        found = MODELS.get(found)
        if found is None:
            choices = sorted(
                name
                for name, cls in MODELS.module_dict.items()
                if isinstance(cls, type) and issubclass(cls, parent)
            )
            close = difflib.get_close_matches(cfg['type'], choices, 1)
            hint = f' (did you mean {close[0]!r}?)' if close else ''
            raise KeyError(
                f'{key}.type={cfg["type"]!r} is not registered{hint}; '
                f'choose from {choices}'
            )
    if not (isinstance(found, type) and issubclass(found, parent)):
        raise TypeError(f'{key}.type={cfg["type"]!r} is not a {parent.__name__}')
    return cast(type[T], found)


def build_part(cfg: dict, base: Callable[..., T], key: str, **kwargs: Any) -> T:
    """Build a registered subclass of ``base``.

    Args:
        cfg: Config with ``type``.
        base: See :func:`find_part`.
        key: See :func:`find_part`.
        **kwargs: Further arguments of the constructor.

    Raises:
        KeyError: If no such class is registered.
        TypeError: If ``cfg`` has no type, or the class is of another kind.
    """
    find_part(cfg, base, key)
    return MODELS.build({**cfg, **kwargs})
