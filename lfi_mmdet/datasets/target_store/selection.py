"""From the targets of a batch to the records of its images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import SampleList
from torch import Tensor, nn

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets

from .record import StoredTargets


@dataclass(frozen=True)
class TextChoice:
    """Which texts of an image are kept.

    Attributes:
        rule: ``'present'``: those that the teacher's ``present`` counts as present;
            ``'all'``; ``'top'``: those present first, then those with the highest
            scores or, without scores, with the greatest mass.
        count: With ``'top'``, how many.
    """

    rule: str
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> TextChoice:
        """Read ``'present'``, ``'all'`` or ``'top:N'``.

        Raises:
            InputError: If it is none of these.
        """
        rule, _, count = text.partition(':')
        if rule == 'top' and count.isdecimal() and int(count):
            return cls(rule, int(count))
        if text in ('present', 'all'):
            return cls(text)
        raise InputError(
            f'--texts {text}: choose "present", "all" or "top:N" with a number N'
        )

    def __str__(self) -> str:
        return f'top:{self.count}' if self.rule == 'top' else self.rule


def iter_teachers(teacher: FrozenTeacher) -> Iterator[FrozenTeacher]:
    """A teacher and those inside of it."""
    yield teacher
    for inner in getattr(teacher, 'teachers', ()):
        yield from iter_teachers(inner)


def read_records(
    teacher: FrozenTeacher,
    batch: dict[str, Any],
    preprocessor: nn.Module,
    choice: TextChoice,
    features: bool = False,
) -> list[StoredTargets]:
    """Ask the teacher about a batch and keep what is chosen.

    Args:
        teacher: With class names.
        batch: ``inputs`` and ``data_samples``, out of the data preprocessor.
        preprocessor: The data preprocessor.
        choice: The texts to keep. Other choices than ``'present'`` let the teacher read
            all texts that it has; which of them count as present is kept with them.
        features: Whether to keep features; otherwise their cosines are kept.

    Returns:
        One record per image.

    Raises:
        InputError: If the teacher cannot rank texts or tell which are present.
    """
    inputs, samples = batch['inputs'], batch['data_samples']
    if choice.rule == 'present':
        targets = teacher(inputs, samples, preprocessor, compact=False)
        verdict = kept = targets.present
    else:
        with _reading_all(teacher):
            targets = teacher(inputs, samples, preprocessor, compact=False)
        verdict = _verdict(teacher, targets, samples)
        kept = targets.present
        if choice.rule == 'top':
            kept = kept & _best(targets, verdict, kept, choice.count)
    words = _free_words(teacher, samples)
    return [
        _record(targets, index, rows.nonzero()[:, 0], verdict[index], features, own)
        for index, (rows, own) in enumerate(zip(kept, words))
    ]


@contextmanager
def _reading_all(teacher: FrozenTeacher) -> Iterator[None]:
    """Let a teacher read all its texts, and tell scores if it has any."""
    members = list(iter_teachers(teacher))
    before = [(member.present, member.wants_scores) for member in members]
    for member in members:
        member.present, member.wants_scores = 'all', True
    try:
        yield
    finally:
        for member, (present, wants_scores) in zip(members, before):
            member.present, member.wants_scores = present, wants_scores


def _verdict(
    teacher: FrozenTeacher, targets: InteractionTargets, samples: SampleList
) -> Tensor:
    """Which texts are present by the teacher's own rule, bool (B, T)."""
    present = teacher.present_in(samples)
    if present is not None:
        return present.to(targets.present.device)
    if targets.scores is None or len(list(iter_teachers(teacher))) > 1:
        raise InputError(
            "--texts: several teachers at once with present='teacher' do not tell "
            'which texts are present once all are read; choose --texts present'
        )
    return teacher.presence(targets.scores)


def _best(
    targets: InteractionTargets, verdict: Tensor, read: Tensor, count: int
) -> Tensor:
    """Mark the best texts of each image, bool (B, T)."""
    if targets.scores is not None:
        value = targets.scores.double()
    elif targets.log_mass is not None:
        value = targets.log_mass.double().mean(1)
    else:
        raise InputError(
            '--texts top:N: this teacher tells neither scores nor masses to rank texts '
            'by; choose "present" or "all"'
        )
    # ranks from 0 to T - 1: those that are present come before all others
    rank = value.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    value = (rank + verdict * value.shape[1]).double()
    value = value.masked_fill(~read, float('-inf'))
    best = value.topk(min(count, value.shape[1]), dim=1).indices
    return torch.zeros_like(read).scatter(1, best, True)


def _free_words(
    teacher: FrozenTeacher, samples: SampleList
) -> list[tuple[str, ...] | None]:
    """The words that texts beyond the classes stand for, per image."""
    for member in iter_teachers(teacher):
        if getattr(member, 'max_free', 0):
            classes = len(member.class_names or ())
            found: list[tuple[str, ...] | None] = []
            for words in member.words_of(samples):  # type: ignore[attr-defined]
                free = {w.row - classes: w.text for w in words if w.row >= classes}
                found.append(tuple(free[j] for j in sorted(free)))
            return found
    return [None] * len(samples)


def _record(
    targets: InteractionTargets,
    index: int,
    rows: Tensor,
    verdict: Tensor,
    features: bool,
    words: tuple[str, ...] | None,
) -> StoredTargets:
    """Take rows out of the targets of an image."""
    texts = rows if targets.texts is None else targets.texts[index, rows]
    vectors = relations = None
    if targets.features is not None:
        vectors = targets.features[index][:, rows].float()
        unit = F.normalize(vectors, dim=-1)
        relations = unit @ unit.mT
    elif targets.relations is not None:
        relations = targets.relations[index][:, rows][:, :, rows].float()

    def array(value: Tensor | None) -> Any:
        return None if value is None else value.cpu().numpy()

    return StoredTargets(
        maps=array(targets.maps[index][:, rows].float()),
        texts=array(texts.long()),
        present=array(verdict[rows]),
        relations=None if features else array(relations),
        features=array(vectors) if features else None,
        words=words,
    )
