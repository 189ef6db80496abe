"""True sentences about a scene, in varied plain English."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .scene import Scene
from .styles import STYLES, Style

# Objects up to / from this share of the image side are called small / large
SMALL, LARGE = 0.15, 0.35
_NUMBERS = ('no one two three four five six seven eight nine ten eleven twelve').split()
_ROWS = ('upper', 'middle', 'lower')
_COLUMNS = ('left', 'centre', 'right')
# Centres must lie this far apart, as a share of the side, to be compared
_CLEARLY = 0.15


@dataclass(frozen=True)
class _Seen:
    """What a caption may say about one object."""

    category: str
    size: str
    colour: str
    texture: str
    x: float
    y: float
    share: float


def plural(noun: str) -> str:
    """The plural of a class name."""
    return noun + ('es' if noun.endswith(('s', 'x')) else 's')


def _look(scene: Scene, style: Style) -> list[_Seen]:
    side = scene.config.size
    seen = []
    for index in scene.objects:
        item = scene.items[index]
        rows, columns = np.nonzero(scene.visible_mask(index))
        size = 'small' if item.extent <= SMALL else ''
        size = 'large' if item.extent >= LARGE else size
        # Blended into the background it has no colour of its own
        faint = item.faint and not style.outline
        colour = 'faint' if faint else item.colour * style.names_colour
        seen.append(
            _Seen(
                category=str(item.category),
                size=size,
                colour=colour,
                texture=item.texture * (style.names_texture and not faint),
                x=(float(columns.mean()) + 0.5) / side,
                y=(float(rows.mean()) + 0.5) / side,
                share=scene.visible_share(index),
            )
        )
    return seen


def _with_article(phrase: str) -> str:
    return ('an ' if phrase[0] in 'aeiou' else 'a ') + phrase


def _adjectives(rng: np.random.Generator, group: Sequence[_Seen]) -> list[str]:
    # Only what is true of all of them
    def shared(words: set[str], chance: float) -> list[str]:
        return [w for w in words if w and len(words) == 1 and rng.random() < chance]

    size = shared({s.size for s in group}, 0.6)
    look = shared({s.texture for s in group}, 0.5)
    look += shared({s.colour for s in group}, 0.8)
    hidden = [s.share < 0.75 for s in group]
    start = ['partly visible'] * (all(hidden) and rng.random() < 0.4)
    return start + size + [look[i] for i in rng.permutation(len(look))]


def _place(rng: np.random.Generator, one: _Seen) -> str:
    row, column = _ROWS[int(one.y * 3)], _COLUMNS[int(one.x * 3)]
    if (row, column) == ('middle', 'centre'):
        return 'in the middle'
    if row == 'middle':
        return f'on the {column}'
    if column == 'centre':
        return 'at the top' if row == 'upper' else 'at the bottom'
    return f'in the {row} {column}' + ' corner' * (rng.random() < 0.5)


def _phrase(rng: np.random.Generator, group: Sequence[_Seen], place: bool) -> str:
    noun = group[0].category if len(group) == 1 else plural(group[0].category)
    phrase = ' '.join([*_adjectives(rng, group), noun])
    if len(group) > 1:
        return f'{_NUMBERS[len(group)]} {phrase}'
    phrase = _with_article(phrase)
    if place and rng.random() < 0.35:
        return f'{phrase} {_place(rng, group[0])}'
    return phrase


def _groups(rng: np.random.Generator, seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """Objects that share one noun phrase: a class, or its equal looking ones."""
    grouped: dict[tuple, list[_Seen]] = {}
    apart = rng.random() < 0.5
    for one in seen:
        key = (one.category, one.size, one.colour) if apart else (one.category,)
        grouped.setdefault(key, []).append(one)
    groups = list(grouped.values())
    return [groups[i] for i in rng.permutation(len(groups))]


def _joined(phrases: Sequence[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return ', '.join(phrases[:-1]) + ' and ' + phrases[-1]


def _relation(a: _Seen, b: _Seen) -> str | None:
    dx, dy = b.x - a.x, b.y - a.y
    if max(abs(dx), abs(dy)) < _CLEARLY:
        return None
    if abs(dx) > abs(dy):
        return 'left of' if dx > 0 else 'right of'
    return 'above' if dy > 0 else 'below'


def _related(rng: np.random.Generator, groups: list[list[_Seen]]) -> str | None:
    """'a star left of a circle, with two squares'; None if no pair is clear."""
    single = [g for g in groups if len(g) == 1]
    for a, b in zip(single, single[1:]):
        relation = _relation(a[0], b[0])
        if relation is None:
            continue
        pair = f'{_phrase(rng, a, False)} {relation} {_phrase(rng, b, False)}'
        rest = [_phrase(rng, g, True) for g in groups if g is not a and g is not b]
        return f'{pair}, with {_joined(rest)}' if rest else pair
    return None


def _listed(rng: np.random.Generator, style: Style, groups: list[list[_Seen]]) -> str:
    words = _joined([_phrase(rng, group, True) for group in groups])
    total = sum(len(group) for group in groups)
    frames = [
        words,
        f'a {style.noun} of {words}',
        f'a {style.noun} showing {words}',
        f'there {"is" if len(groups[0]) == 1 else "are"} {words}',
        f'{words} on a busy background' if style.names_texture else words,
        f'we see {words}',
        f'{_NUMBERS[total]} {"shape" if total == 1 else "shapes"}: {words}',
    ]
    return frames[rng.integers(len(frames))]


def captions(scene: Scene) -> Iterator[str]:
    """Endless captions of one scene, the same for the same scene.

    Every caption names each visible class, with its right number of objects,
    and nothing that is not there. Sizes, textures, colours and positions are
    told at random; an object that blends into the background is called faint
    instead of by its colour.

    Args:
        scene (Scene): A sampled scene.

    Yields:
        str: One sentence.
    """
    style = STYLES[scene.config.domain]
    rng = np.random.default_rng(scene.caption_seed)
    seen = _look(scene, style)
    while True:
        groups = _groups(rng, seen)
        text = _related(rng, groups) if rng.random() < 0.35 else None
        text = text or _listed(rng, style, groups)
        yield text[0].upper() + text[1:] + '.'
