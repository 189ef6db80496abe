"""Which words of an image's captions are its texts, by a stated rule."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .coco_synonyms import COCO_SYNONYMS
from .english import names_something, singular

_WORD = re.compile(r'[^\W\d_]+')
#: What may lie between the words of one name
_JOINT = re.compile(r'[\s-]+')


@dataclass(frozen=True)
class CaptionWord:
    """One occurrence, in a caption, of something that is a text of the image.

    Args:
        caption: The caption, as it was given.
        start: First character of the word or words.
        stop: One after their last character.
        text: What they stand for: the name of their class, or a free word in the
            singular.
        owner: Index of the class they name; None for a free word.
        row: Their row of the targets: the index of the class, or the number of
            classes plus j for the j-th free word of the image.
    """

    caption: str
    start: int
    stop: int
    text: str
    owner: int | None
    row: int


def class_synonyms(
    class_names: Sequence[str], synonyms: str | Mapping[str, Sequence[str]] | None
) -> list[tuple[str, ...]]:
    """Look up the synonyms of every class.

    Args:
        class_names: Names of the classes.
        synonyms: Class name -> other words for it; ``'coco'`` for those of
            :data:`COCO_SYNONYMS` whose class is among the names; None for none.

    Returns:
        One tuple per class, without the name itself.

    Raises:
        ValueError: If a key is no class, a value no list of words, ``synonyms`` is
            another word than ``'coco'``, or none of the classes is one of COCO's.
    """
    if synonyms is None:
        return [()] * len(class_names)
    if isinstance(synonyms, str):
        if synonyms != 'coco':
            raise ValueError(
                f"teacher.synonyms={synonyms!r} is not known; choose 'coco', None or "
                "a dict such as {'person': ['man', 'woman']}"
            )
        if not set(class_names) & set(COCO_SYNONYMS):
            raise ValueError(
                "teacher.synonyms='coco', but none of the classes is one of COCO's: "
                f'{_some(class_names)}; give a dict or None'
            )
        return [COCO_SYNONYMS.get(name, ()) for name in class_names]
    unknown = [name for name in synonyms if name not in set(class_names)]
    if unknown:
        raise ValueError(
            f'teacher.synonyms has entries for {_some(unknown)}, which are no classes; '
            f'the classes are {_some(class_names)}'
        )
    for name, words in synonyms.items():
        if isinstance(words, str) or not all(
            isinstance(word, str) and _WORD.search(word) for word in words
        ):
            raise ValueError(
                f'teacher.synonyms[{name!r}]={words!r} is not a list of words'
            )
    return [tuple(synonyms.get(name, ())) for name in class_names]


def caption_words(
    captions: Sequence[str],
    class_names: Sequence[str],
    synonyms: str | Mapping[str, Sequence[str]] | None = None,
    max_free: int = 0,
) -> list[CaptionWord]:
    """Find the words of an image's captions that name a class or something else.

    The rule:

    1. Words are letters without a break, in lower case and in the singular
       (:func:`lfi_mmdet.models.teachers.english.singular`).
    2. From left to right, the longest sequence of words that equals a class name or
       a synonym names that class, and its words are used up: 'teddy bear' is no
       'bear'. Names are compared in the singular and without spaces and hyphens, so
       'skate board', 'Skate-boards' and 'skateboard' are one; any other character
       between two words parts them. The name of a class beats a synonym of another.
    3. Of the other words, those that may stand for something in a picture
       (:func:`lfi_mmdet.models.teachers.english.names_something`) are free words.
       They are ranked by the number of captions in which they occur, then by where
       they occur first; the first ``max_free`` are kept.

    Args:
        captions: All captions of one image.
        class_names: Names of the classes; they may have several words.
        synonyms: See :func:`class_synonyms`.
        max_free: Number of different free words to keep at most.

    Returns:
        All occurrences, in the order of the captions; those with the same ``row``
        mean the same.

    Raises:
        ValueError: If names or synonyms of two classes are the same word, see also
            :func:`class_synonyms`.
    """
    if max_free < 0:
        raise ValueError(f'teacher.max_free={max_free} is negative')
    names = _known_names(tuple(class_names), _frozen(synonyms))
    found = [(i, *hit) for i, text in enumerate(captions) for hit in _hits(text, names)]
    counts: dict[str, set[int]] = {}
    for index, _, _, word, owner in found:
        if owner is None:
            counts.setdefault(word, set()).add(index)
    # sorted() is stable, and the words come in the order of their first occurrence
    ranked = sorted(counts, key=lambda word: -len(counts[word]))[:max_free]
    rows = {word: len(class_names) + j for j, word in enumerate(ranked)}
    return [
        CaptionWord(
            caption=captions[index],
            start=start,
            stop=stop,
            text=word if owner is None else class_names[owner],
            owner=owner,
            row=rows[word] if owner is None else owner,
        )
        for index, start, stop, word, owner in found
        if owner is not None or word in rows
    ]


def _hits(caption: str, names: _Names) -> Iterator[tuple[int, int, str, int | None]]:
    """Class names and possible free words of a caption, see :func:`caption_words`.

    Yields:
        Start and stop in characters, the word in the singular, and the class or None.
    """
    words = [(m.start(), m.end(), m.group().lower()) for m in _WORD.finditer(caption)]
    keys = [singular(word) for _, _, word in words]
    i = 0
    while i < len(words):
        # how many words follow one another without anything else between them
        run = 1
        while (
            run < names.longest
            and i + run < len(words)
            and _JOINT.fullmatch(caption, words[i + run - 1][1], words[i + run][0])
        ):
            run += 1
        for count in range(run, 0, -1):
            owner = names.owners.get(''.join(keys[i : i + count]))
            if owner is not None:
                yield words[i][0], words[i + count - 1][1], keys[i], owner
                break
        else:
            count = 1
            if names_something(words[i][2]):
                yield words[i][0], words[i][1], keys[i], None
        i += count


@dataclass(frozen=True)
class _Names:
    """Joined singulars -> class, and of how many words the longest may consist."""

    owners: dict[str, int]
    longest: int


def _key(name: str) -> str:
    return ''.join(singular(word.lower()) for word in _WORD.findall(name))


def _frozen(
    synonyms: str | Mapping[str, Sequence[str]] | None,
) -> str | tuple[tuple[str, str | tuple[str, ...]], ...] | None:
    """Make synonyms hashable, leaving errors to :func:`class_synonyms`."""
    if synonyms is None or isinstance(synonyms, str):
        return synonyms
    return tuple(
        (name, words if isinstance(words, str) else tuple(words))
        for name, words in synonyms.items()
    )


@lru_cache(maxsize=8)
def _known_names(
    class_names: tuple[str, ...],
    synonyms: str | tuple[tuple[str, str | tuple[str, ...]], ...] | None,
) -> _Names:
    given = dict(synonyms) if isinstance(synonyms, tuple) else synonyms
    others = class_synonyms(class_names, given)
    owners: dict[str, int] = {}
    for index, name in enumerate(class_names):
        other = owners.setdefault(_key(name), index)
        if other != index or not _key(name):
            raise ValueError(
                f'class {name!r} cannot be told from {class_names[other]!r} in captions'
                if other != index
                else f'class {name!r} has no letters that a caption could name it by'
            )
    taken = set(owners)
    for index, words in enumerate(others):
        for word in words:
            if _key(word) in taken:  # a class of its own
                continue
            other = owners.setdefault(_key(word), index)
            if other != index:
                raise ValueError(
                    f'teacher.synonyms gives {word!r} to both {class_names[other]!r} '
                    f'and {class_names[index]!r}'
                )
    every = [*class_names, *(word for words in others for word in words)]
    # one more than written: 'skateboard' is also found as 'skate board'
    longest = 1 + max((len(_WORD.findall(name)) for name in every), default=0)
    return _Names(owners, longest)


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(map(repr, names[:limit])) + more
