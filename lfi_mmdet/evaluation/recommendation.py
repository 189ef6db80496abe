"""Which reading and which layers of a teacher to distil, by a stated rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .teacher_quality import Estimate, LayerQuality

#: Below this, a ranking of classes by presence is called of little use
LEAST_AUC = 0.6
#: With fewer images, intervals are called what they are: wide
FEW_IMAGES = 50

RULE = (
    'A layer counts if its pointing is above chance and its specific pointing above 0, '
    'both by more than luck gives the best of as many layers (97.5% confidence, '
    'Bonferroni). The best is the one with the highest specific pointing, among equals '
    'the one with most of its map inside; of its reading, all layers that count and '
    'are not below its 95% interval are recommended. Where no image shows two classes, '
    'pointing stands in for specific pointing.'
)


@dataclass
class Recommendation:
    """What :func:`recommend` says.

    Attributes:
        reading: The reading to distil; None if nothing beats chance.
        best: Name of the best layer.
        layers: Names of the layers to distil, in the teacher's order.
        metric: Field of :class:`LayerQuality` that ranked them.
        warnings: What the numbers do not support.
    """

    reading: str | None
    best: str | None
    layers: list[str]
    metric: str
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return asdict(self)


def recommend(qualities: Sequence[LayerQuality]) -> Recommendation:
    """Choose a reading and its layers by :data:`RULE`.

    Args:
        qualities: Of all layers of all readings that were tried.

    Raises:
        ValueError: If no layer was measured on any object.
    """
    if not any(quality.pointing for quality in qualities):
        raise ValueError('no image shows an object with a mask: there is no measuring')
    specific = any(quality.specific_pointing for quality in qualities)
    metric = 'specific_pointing' if specific else 'pointing'
    warnings = []
    if not specific:
        warnings.append(
            'no image shows two classes, so these numbers cannot tell a map of the '
            'named class from a map of any object'
        )
    images = max(_get(quality, 'pointing').num_images for quality in qualities)
    if images < FEW_IMAGES:
        warnings.append(f'{images} images with objects are few: the intervals are wide')
    among = len(qualities)
    counting = [quality for quality in qualities if _counts(quality, metric, among)]
    if not counting:
        warnings.append(
            'no layer of any reading beats chance: distilling this teacher would teach '
            'the student noise; try another reading, template or teacher'
        )
        return Recommendation(None, None, [], metric, warnings)
    best = max(
        counting,
        key=lambda quality: (
            _get(quality, metric).value,
            _get(quality, 'inside_named').value,
        ),
    )
    low = _get(best, metric).low
    assert low is not None, 'counts only with an interval'
    layers = [
        quality.layer
        for quality in counting
        if quality.reading == best.reading and _get(quality, metric).value >= low
    ]
    warnings += _presence_warnings(best)
    return Recommendation(best.reading, best.layer, layers, metric, warnings)


def _get(quality: LayerQuality, metric: str) -> Estimate:
    return getattr(quality, metric)


def _counts(quality: LayerQuality, metric: str, among: int) -> bool:
    needed = [quality.pointing, _get(quality, metric)]
    return all(one is not None and one.beats_chance(among) for one in needed)


def _presence_warnings(best: LayerQuality) -> list[str]:
    """What the best layer cannot be used for."""
    warnings = []
    if best.score_auc is not None and best.score_auc.value < LEAST_AUC:
        warnings.append(
            f"the teacher's scores rank present classes above absent ones with an AUC "
            f'of {best.score_auc.value:.2f}, hardly better than guessing: do not use '
            "present='teacher'"
        )
    if best.presence_auc is not None and best.presence_auc.value < LEAST_AUC:
        warnings.append(
            f'presence AUC of layer {best.layer} is {best.presence_auc.value:.2f}, '
            'hardly better than guessing: its maps of absent classes are as strong as '
            "those of present ones, so keep present='ground_truth' and do not stitch "
            'tiles'
        )
    return warnings


def config_lines(
    found: Recommendation,
    accepted: Iterable[str],
    place: str = 'model = dict(teacher=dict({}))',
) -> str:
    """The lines of a config that follow a recommendation.

    Args:
        found: With a reading.
        accepted: Arguments that the teacher takes.
        place: Where the arguments go, with ``{}`` for them.

    Returns:
        Python code; a comment says what no argument of the teacher can say.
    """
    accepted = set(accepted)
    names = [re.fullmatch(r'(\d+)(?:\.h(\d+))?', name) for name in found.layers]
    arguments, comments = [], []
    if 'reading' in accepted:
        arguments.append(f'reading={found.reading!r}')
    if 'layers' in accepted and all(names):
        layers, heads = ({name[i] for name in names if name} for i in (1, 2))
        arguments.append(f'layers={sorted(map(int, layers))}')
        if None not in heads:
            arguments.append(f'heads={sorted(map(int, heads))}')
            comments.append(
                f'# {", ".join(found.layers)} were good one by one; these lines '
                'average the heads in every layer: check them again'
            )
    else:
        comments.append(
            f'# layers to distil: {", ".join(found.layers)}; the teacher takes no '
            'argument that says so'
        )
    lines = [place.format(', '.join(arguments))] if arguments else []
    return '\n'.join(lines + comments)
