"""Prompts made of class names, and where the names lie among their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A text for the teacher, and the words in it that are asked for.

    Attributes:
        text: The whole text.
        start: First character of the words.
        stop: Character behind them.
        row: Row of the targets that the words belong to: a class, or a free word.
    """

    text: str
    start: int
    stop: int
    row: int

    @property
    def words(self) -> str:
        """The words that are asked for."""
        return self.text[self.start : self.stop]


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


def class_prompts(
    templates: Sequence[str],
    class_names: Sequence[str],
    synonyms: Sequence[Sequence[str]] | None = None,
) -> list[Prompt]:
    """Make the prompts of all classes: every template with every name of a class.

    Args:
        templates: See :func:`fill_template`.
        class_names: One name per class; row k belongs to class k.
        synonyms: Further names of each class.

    Returns:
        Prompts in the order of the classes.

    Raises:
        ValueError: If a template or a name is unusable.
    """
    fill_template(templates[0], class_names)  # names its own complaints better
    prompts = []
    for row, name in enumerate(class_names):
        names = [name, *(synonyms[row] if synonyms else ())]
        for template in templates:
            start = template.find('{}')
            for one, text in zip(names, fill_template(template, names)):
                prompts.append(Prompt(text, start, start + len(one), row))
    return prompts


def shorten(prompt: Prompt, count: Callable[[str], int], limit: int) -> Prompt:
    """Cut off leading words until those that are asked for are within reach.

    For captions, whose length nobody chose.

    Args:
        prompt: Text and words.
        count: Number of tokens of a text, start and end token included.
        limit: The most tokens the teacher reads.
    """
    while count(prompt.text[: prompt.stop]) > limit:
        cut = prompt.text.find(' ', 0, prompt.start) + 1
        if not cut:
            break
        prompt = Prompt(
            prompt.text[cut:], prompt.start - cut, prompt.stop - cut, prompt.row
        )
    return prompt


def token_span(tokenizer: Any, prompt: Prompt) -> range:
    """Find the tokens of a prompt's words.

    Args:
        tokenizer: A BPE tokenizer of open_clip, which puts one start token first.
        prompt: The prompt; its words may consist of several tokens.

    Returns:
        Positions in the tokenised prompt, start token included in the count.

    Raises:
        ValueError: If the tokens are not there, because the prompt was cut at the
            context length or because the words run into their neighbours.
    """
    before = tokenizer.encode(prompt.text[: prompt.start])
    wanted = tokenizer.encode(prompt.words)
    span = range(1 + len(before), 1 + len(before) + len(wanted))
    found = tokenizer([prompt.text])[0].tolist()[span.start : span.stop]
    if not wanted or found != wanted:
        raise ValueError(
            f'the tokens of {prompt.words!r} are not found in the prompt '
            f'{prompt.text!r}: it is either cut at {tokenizer.context_length} tokens, '
            'or teacher.template joins them to what is next to them (put a space)'
        )
    return span
