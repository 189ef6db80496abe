"""Values of ``KEY=VALUE`` on the command line, as settings of a config."""

from __future__ import annotations

from typing import Any

from mmengine.config import DictAction

_PARTNERS = {'(': ')', '[': ']'}
_QUOTES = ('"', "'")


def parse_option_value(text: str) -> Any:
    """Read a value as mmengine does, but without touching the spaces of strings.

    mmengine's own parser deletes every space, so that a prompt such as
    ``a drawing of a {}.`` or a path with a space silently becomes another one.

    - ``[a, b]`` and ``a, b`` are lists, ``(a, b)`` is a tuple; they may be nested.
      Spaces around elements are left out, those within are kept.
    - Quotes around a value or an element are left out; commas and brackets between
      them part nothing.
    - Everything else is a number, ``True``, ``False``, ``None`` or a string as it is
      written.

    Args:
        text: What stands behind ``KEY=``.

    Raises:
        ValueError: If the value has several elements, but brackets without partners.
    """
    value = text.strip()
    if _is_quoted(value):
        if not _is_enclosed(value[1:-1].strip()):
            return _scalar(value[1:-1])
        value = value[1:-1].strip()
    if _is_enclosed(value):
        elements = [parse_option_value(element) for element in _split(value[1:-1])]
        return tuple(elements) if value[0] == '(' else elements
    if ',' in value and _commas(value):
        return [parse_option_value(element) for element in _split(value)]
    return _scalar(text)


def _scalar(text: str) -> Any:
    value = DictAction._parse_int_float_bool(text.strip())
    return text if isinstance(value, str) else value


def _is_quoted(text: str) -> bool:
    """Whether one pair of quotes is around all of a text."""
    return (
        len(text) > 1
        and text[0] in _QUOTES
        and text[-1] == text[0]
        and text[0] not in text[1:-1]
    )


def _is_enclosed(text: str) -> bool:
    """Whether one pair of brackets is around all of a text: not in '(a) or (b)'."""
    if len(text) < 2 or _PARTNERS.get(text[0]) != text[-1]:
        return False
    try:
        _commas(text[1:-1])
    except ValueError:
        return False
    return True


def _split(text: str) -> list[str]:
    """The elements of a list, without spaces around them; a last comma ends it."""
    bounds = [-1, *_commas(text), len(text)]
    elements = [text[a + 1 : b].strip() for a, b in zip(bounds, bounds[1:])]
    return elements if elements[-1] else elements[:-1]


def _commas(text: str) -> list[int]:
    """Where the commas outside of brackets and quotes are.

    Raises:
        ValueError: If a bracket has no partner.
    """
    places: list[int] = []
    expected: list[str] = []
    start, index = True, 0  # whether an element starts here: only there is a ' a quote
    while index < len(text):
        char = text[index]
        if start and char in _QUOTES:
            index = _end_of_quote(text, index)
        elif char in _PARTNERS:
            expected.append(_PARTNERS[char])
        elif char in _PARTNERS.values():
            if not expected or expected.pop() != char:
                raise ValueError(f'Imbalanced brackets exist in {text!r}')
        elif char == ',' and not expected:
            places.append(index)
        start = char == ',' or char in _PARTNERS or (start and char.isspace())
        index += 1
    if expected:
        raise ValueError(f'Imbalanced brackets exist in {text!r}')
    return places


def _end_of_quote(text: str, start: int) -> int:
    """Where a quoted element ends; ``start`` itself if that is no opening quote."""
    end = text.find(text[start], start + 1)
    while end != -1:
        if text[end + 1 :].lstrip()[:1] in ('', ',', ')', ']'):
            return end
        end = text.find(text[start], end + 1)
    return start
