"""Which texts of a store count as present when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lfi_mmdet.datasets.target_store.meta import StoreMeta
from lfi_mmdet.datasets.target_store.record import StoredTargets
from lfi_mmdet.engine.preflight import InputError

#: Names of the rules
RULES = ('ground_truth', 'teacher', 'all')


class StoredPresence:
    """Decides which rows of an image's targets count as present.

    Args:
        meta: What the store says about itself.
        rule: One of :data:`RULES`, or None for that of the teacher that made the
            store: see :class:`.LoadCachedTargets`.

    Raises:
        InputError: If the store does not hold what the rule needs.
    """

    def __init__(self, meta: StoreMeta, rule: str | None = None) -> None:
        teachers = list(_teachers(meta.teacher or {}))
        stored = {cfg.get('present', 'ground_truth') for cfg in teachers}
        if 'captions' in stored:  # which the store holds as what was found
            stored = {*stored - {'captions'}, 'teacher'}
        # of teachers that disagree, the store knows what they found together
        made = stored.pop() if len(stored) == 1 else 'teacher'
        self.rule, self.num_classes = rule or made, len(meta.classes or ())
        self.made = made
        #: Whether every class that an image shows has a row
        self.whole = meta.texts == 'all' or (
            made == 'ground_truth'
            and meta.texts == 'present'
            and not any(
                cfg.get('missing') or cfg.get('texts') == 'captions' for cfg in teachers
            )
        )
        held = dict(
            ground_truth=meta.texts == 'all' or made in ('ground_truth', 'all'),
            teacher=made == 'teacher',
            all=meta.texts == 'all' or made == 'all',
        )
        if not held[self.rule]:
            possible = [name for name in RULES if held[name]]
            raise InputError(
                f'LoadCachedTargets.present={rule!r} cannot be told from a store made '
                f'with teacher.present={made!r} and --texts {meta.texts}; choose from '
                f'{possible}, or cache the targets anew'
            )

    def __call__(
        self, record: StoredTargets, labels: np.ndarray | None, name: str
    ) -> np.ndarray:
        """Indices of the rows that are present.

        Args:
            record: Targets of the whole image.
            labels: Classes of what augmentation left of its annotations.
            name: What to call the image in messages.

        Raises:
            InputError: If there are no labels although they are to decide, or a class
                has no row although the store should have one.
        """
        if self.rule == 'all':
            return np.arange(len(record.texts))
        if self.rule == 'teacher':
            return np.flatnonzero(record.present)
        if labels is None:
            raise InputError(
                f'LoadCachedTargets: {name} has no gt_bboxes_labels, which '
                "present='ground_truth' needs; put dict(type='LoadAnnotations', "
                'with_bbox=True) in front of it'
            )
        # sets of so few numbers are faster than arrays
        texts, wanted = record.texts.tolist(), set(labels.tolist())
        unknown = wanted.difference(texts) if self.whole else ()
        if unknown:
            raise InputError(
                f'LoadCachedTargets: {name} shows class {min(unknown)}, of which the '
                'store holds nothing for this image; the annotations are not those it '
                'was made with, cache the targets anew'
            )
        # a faulty teacher, made so on purpose, has not found all that is there
        found = record.present if self.made == 'ground_truth' else [True] * len(texts)
        rows = [
            row
            for row, (text, there) in enumerate(zip(texts, found))
            if there and (text in wanted or text >= self.num_classes)
        ]
        return np.array(rows, np.int64)


def _teachers(cfg: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The teachers in the config of an ensemble or a wrapper, or the only one."""
    inside = [*(cfg.get('teachers') or ())]
    if cfg.get('teacher'):
        inside.append(cfg['teacher'])
    if not inside:
        yield cfg
    for inner in inside:
        yield from _teachers(inner)
