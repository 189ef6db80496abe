"""Build our parts from configs, with errors that name the choices."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from mmdet.registry import MODELS

T = TypeVar('T')


def build_part(cfg: dict, base: type[T], key: str, **kwargs: Any) -> T:
    """Build a registered subclass of ``base``.

    Args:
        cfg: Config with ``type``.
        base: What the class must derive from.
        key: Where ``cfg`` stands in the config, for error messages.
        **kwargs: Further arguments of the constructor.

    Raises:
        KeyError: If no such class is registered.
        TypeError: If ``cfg`` has no type, or the class is of another kind.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(f'{key}={cfg!r} is not a config with a "type"')
    found = cfg['type']
    if isinstance(found, str):
        found = MODELS.get(found)
        if found is None:
            choices = sorted(
                name
                for name, cls in MODELS.module_dict.items()
                if isinstance(cls, type) and issubclass(cls, base)
            )
            close = difflib.get_close_matches(cfg['type'], choices, 1)
            hint = f' (did you mean {close[0]!r}?)' if close else ''
            raise KeyError(
                f'{key}.type={cfg["type"]!r} is not registered{hint}; '
                f'choose from {choices}'
            )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f'{key}.type={cfg["type"]!r} is not a {base.__name__}')
    return MODELS.build({**cfg, **kwargs})
