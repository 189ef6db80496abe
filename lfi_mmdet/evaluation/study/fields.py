"""Reads a mapping of a study file; says what is wrong with it, and where."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from lfi_mmdet.engine.preflight import InputError


def check_keys(
    given: Any, where: str, known: tuple[str, ...], needed: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """Check that a value is a mapping with known keys.

    Args:
        given: What the file holds.
        where: The key that holds it, for messages.
        known: Keys that may be there.
        needed: Keys that must be there.

    Raises:
        InputError: If it is no mapping, or a key is unknown or missing.
    """
    if not isinstance(given, Mapping):
        raise InputError(f'{where}: {given!r} is no mapping of {", ".join(known)}')
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f'; did you mean {close[0]}?' if close else ''
            raise InputError(
                f'{where}.{key} is not known; choose from {", ".join(known)}{hint}'
            )
    missing = [key for key in needed if key not in given]
    if missing:
        raise InputError(f'{where} lacks {", ".join(missing)}')
    return given


def positive(value: Any, where: str) -> int:
    """Check that a value is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'{where}: {value!r} is no positive whole number')
    return value


def seeds(value: Any, where: str) -> tuple[int, ...]:
    """Check a list of seeds: whole numbers, not negative, none twice."""
    if (
        not isinstance(value, list)
        or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value)
        or len(set(value)) < len(value)
    ):
        raise InputError(
            f'{where}: {value!r} is no list of different numbers from 0 up'
        )
    return tuple(value)


def names(value: Any, where: str, choices: Mapping[str, Any]) -> tuple[str, ...]:
    """Check a list of names against those that are defined."""
    if not isinstance(value, list):
        raise InputError(f'{where}: {value!r} is no list of names')
    for name in value:
        if name not in choices:
            raise InputError(f'{where}: {name!r} is none of {", ".join(choices)}')
    return tuple(value)
