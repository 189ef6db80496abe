"""Replaces ``{name}`` in the options of a study."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lfi_mmdet.engine.preflight import InputError

_VARIABLE = re.compile(r'\{([A-Za-z_][\w.-]*)\}')


def substitute(value: Any, variables: Mapping[str, Any], where: str) -> Any:
    """Replace variables in all texts inside a value.

    A text that is nothing but one variable becomes its value, number or text. ``{{``
    and ``}}`` stand for braces.

    Args:
        value: Text, list, mapping, or anything else, which stays as it is.
        variables: Value by name.
        where: Key of the value, for messages.

    Raises:
        InputError: If a variable is not known.
    """
    if isinstance(value, Mapping):
        return {
            _text(str(key), variables, where): substitute(
                inner, variables, f'{where}.{key}'
            )
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(substitute(inner, variables, where) for inner in value)
    if not isinstance(value, str):
        return value
    whole = _VARIABLE.fullmatch(value)
    if whole:
        return _value(whole.group(1), variables, where)
    return _text(value, variables, where)


def _text(text: str, variables: Mapping[str, Any], where: str) -> str:
    parts = [
        _VARIABLE.sub(lambda m: str(_value(m.group(1), variables, where)), part)
        for part in re.split(r'(\{\{|\}\})', text)
    ]
    return ''.join({'{{': '{', '}}': '}'}.get(part, part) for part in parts)


def _value(name: str, variables: Mapping[str, Any], where: str) -> Any:
    if name not in variables:
        raise InputError(
            f'{where}: no variable {{{name}}}; there are '
            + ', '.join(f'{{{known}}}' for known in variables)
        )
    return variables[name]
