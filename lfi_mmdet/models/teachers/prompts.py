"""Prompts made of class names, and where the names lie among their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def fill_template(template: str, class_names: Sequence[str]) -> list[str]:
    """Put every class name into a template.

    Args:
        template: Text with ``{}`` where the name goes, e.g. ``'a photo of a {}.'``.
        class_names: Names, none of them empty.

    Returns:
        One prompt per name.

    Raises:
        ValueError: If the template has not exactly one ``{}`` or a name is empty.
    """
    if template.count('{}') != 1:
        raise ValueError(
            f'teacher.template={template!r} must hold {{}} exactly once, where the '
            'class name goes'
        )
    for index, name in enumerate(class_names):
        if not name.strip():
            raise ValueError(f'class {index} has an empty name: {list(class_names)}')
    return [template.replace('{}', name) for name in class_names]


def name_span(tokenizer: Any, template: str, name: str) -> range:
    """Find the tokens of a class name in its prompt.

    Args:
        tokenizer: A BPE tokenizer of open_clip, which puts one start token first.
        template: See :func:`fill_template`.
        name: The class name; it may consist of several tokens.

    Returns:
        Positions in the tokenised prompt, start token included in the count.

    Raises:
        ValueError: If the name's tokens are not there, because the prompt was cut
            at the context length or because the name runs into its neighbours.
    """
    (prompt,) = fill_template(template, [name])
    before = tokenizer.encode(template.split('{}')[0])
    wanted = tokenizer.encode(name)
    span = range(1 + len(before), 1 + len(before) + len(wanted))
    found = tokenizer([prompt])[0].tolist()[span.start : span.stop]
    if not wanted or found != wanted:
        raise ValueError(
            f'the tokens of class name {name!r} are not found in the prompt '
            f'{prompt!r}: it is either cut at {tokenizer.context_length} tokens, or '
            f'teacher.template={template!r} joins the name to what is next '
            'to it (put a space)'
        )
    return span
