"""Compares what the student's queries did with what the teacher did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from lfi_mmdet.registry import build_part
from lfi_mmdet.structures import (
    InteractionSpec,
    InteractionTargets,
    InteractionTrace,
    take_layers,
    take_rows,
)

from ..losses.base import InteractionLoss, InteractionPair
from ..teachers.base import FrozenTeacher
from .base import Distiller
from .layer_mapping import map_layers
from .query_assignment import QueryAssignment
from .target_grid import resample_maps


def student_log_attention(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Log of the attention maps, averaged over heads.

    Args:
        logits: (B, h, K, N).
        valid: Bool (B, N), False on padding; None if nothing is padded.

    Returns:
        (B, K, N), at least float32; very low, but finite, on padding.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None], -1e4)
    log_heads = logits.log_softmax(-1)
    return log_heads.logsumexp(1) - math.log(logits.shape[1])


@MODELS.register_module()
class InteractionDistiller(Distiller):
    """Pair layers, bring both sides onto one grid, and apply the losses.

    Args:
        student: What the backbone records.
        teacher_layers: Number of layers of the teacher's targets.
        feature_dims: Channels of the teacher's features; None if it has none.
        relations: Whether the targets tell the cosines between features; None: if
            there are features.
        mass: Whether the targets tell the mass of each map.
        losses: Loss configs by short name; the name appears in the log as
            ``loss_lfi_<name>``. None switches one off.
        layer_mapping: See :func:`map_layers`.
        schedule: Keyword arguments of :class:`LossSchedule`.
        assignment: Config of a :class:`QueryAssignment`, for queries that belong to no
            class; None ties query k to text k.
    """

    def __init__(
        self,
        student: InteractionSpec,
        teacher_layers: int,
        feature_dims: int | None,
        losses: dict[str, dict | None],
        layer_mapping: str = 'uniform',
        schedule: dict | None = None,
        assignment: dict | None = None,
        relations: bool | None = None,
        mass: bool = True,
    ) -> None:
        super().__init__(schedule)
        self.student = student
        self.assignment: QueryAssignment | None = None
        if assignment is not None:
            self.assignment = build_part(
                assignment, QueryAssignment, 'distiller.assignment'
            )
            self.assignment.check_queries(student.num_queries)
        self.pairs = map_layers(layer_mapping, len(student.layers), teacher_layers)
        built: dict[str, InteractionLoss] = {}
        for name, cfg in losses.items():
            if cfg is None:
                continue
            loss = build_part(cfg, InteractionLoss, f'distiller.losses.{name}')
            known = feature_dims is not None or bool(relations and loss.takes_relations)
            self._check(name, loss, known, mass)
            loss.connect(student, feature_dims)
            built[name] = loss
        if not built:
            raise ValueError(
                'distiller.losses names no loss; set model.teacher=None '
                'to train the student alone'
            )
        self.losses = nn.ModuleDict(built)

    def _check(
        self, name: str, loss: InteractionLoss, features: bool, mass: bool
    ) -> None:
        if loss.needs_features and not features:
            raise ValueError(
                f'distiller.losses.{name} ({type(loss).__name__}) needs features, '
                'which this teacher has not; set it to None or choose another teacher'
            )
        if loss.needs_mass and not mass:
            raise ValueError(
                f'distiller.losses.{name} ({type(loss).__name__}) needs the mass of '
                'the maps, which this teacher does not tell; set it to None, or choose '
                'a teacher that is neither read from a cache nor an ensemble'
            )
        if len(self.pairs) < loss.min_layers:
            raise ValueError(
                f'distiller.losses.{name} ({type(loss).__name__}) needs at least '
                f'{loss.min_layers} supervised layers, but layer_mapping leaves '
                f'{len(self.pairs)}'
            )

    @staticmethod
    def ask(teacher: FrozenTeacher) -> dict[str, Any]:
        """Its layers and what it tells of features."""
        return dict(
            teacher_layers=teacher.num_layers,
            feature_dims=teacher.feature_dims,
            relations=teacher.has_relations,
            mass=teacher.has_mass,
        )

    @property
    def num_tied(self) -> int:
        """Number of queries that belong to a class each."""
        if self.assignment is None:
            return self.student.num_queries
        return self.assignment.num_tied

    @property
    def loss_names(self) -> list[str]:
        """``loss_lfi_*``."""
        return [f'loss_lfi_{name}' for name in self.losses]

    def last_supervised(self) -> tuple[int | None, int | None]:
        """Last interaction layer whose maps, and whose queries, a loss looks at."""
        last = self.pairs[-1][0]
        maps = any(loss.uses_maps for loss in self.losses.values())
        queries = any(loss.uses_queries for loss in self.losses.values())
        return (last if maps else None), (last if queries else None)

    def check_classes(self, num_classes: int, num_more: int = 0) -> None:
        """Check that there are as many texts as queries tied to one.

        Raises:
            ValueError: If there are not.
        """
        tied, texts = self.num_tied, num_classes + num_more
        given = f'{num_classes} class names'
        if num_more:
            given += f' and {num_more} teacher.more_texts'
        if self.assignment is None and texts != tied:
            raise ValueError(
                f'{given}, but backbone.num_queries={tied}; query k belongs to class k'
                + (', those after the classes to the further texts' if num_more else '')
            )
        if tied not in (0, texts):
            raise ValueError(
                f'{given}, but distiller.assignment.num_tied={tied}; choose {texts}, '
                'or 0 to tie no query to a text'
            )

    def check_texts(self, num_texts: int) -> None:
        """Check that there are as many texts as queries, unless they are assigned.

        Raises:
            ValueError: If there are not.
        """
        if self.assignment is None and num_texts != self.num_tied:
            raise ValueError(
                f'the teacher has {num_texts} texts, but backbone.num_queries='
                f'{self.num_tied}; texts beyond the classes need distiller.assignment, '
                "e.g. dict(type='HungarianAssignment')"
            )

    def align(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets,
        img_shapes: Sequence[tuple[int, int]],
        patch_size: tuple[int, int],
    ) -> tuple[list[InteractionPair], Tensor]:
        """Pair the supervised layers on the student's grid, in float32.

        Only the rows the teacher gives are compared: logits and queries of texts that
        are not in an image are never looked at.

        Args:
            trace: What the backbone recorded.
            targets: What the teacher gave for the same batch.
            img_shapes: (height, width) in pixels of each image without padding.
            patch_size: Height and width of a student's patch in pixels.

        Returns:
            The pairs, with P rows per image, and which rows are present, (B, P).

        Raises:
            ValueError: If images, or texts and queries, differ in number.
        """
        queries, present = targets.texts, targets.present
        if len(targets.maps) != len(trace.queries[0]):
            raise ValueError(
                f'the teacher gave targets of {len(targets.maps)} images for a batch '
                f'of {len(trace.queries[0])}'
            )
        if queries is None and self.assignment is None:
            self._check_rows(targets, trace)
        h, w = trace.grid
        batch_shape = (h * patch_size[0], w * patch_size[1])
        wanted = sorted({m for _, m in self.pairs})
        maps = take_layers(targets.maps, wanted)
        resampled = resample_maps(
            maps.flatten(1, 2), img_shapes, batch_shape, trace.grid, trace.valid
        ).unflatten(1, maps.shape[1:3])
        if self.assignment is not None:
            queries, present = self._assign(trace, targets, resampled, wanted)
        pairs = []
        for s, t in self.pairs:
            logits, vectors = trace.logits[s], trace.queries[s]
            if queries is not None:
                logits = take_rows(logits, queries, 2)
                vectors = take_rows(vectors, queries, 1)
            features, relations = targets.features, targets.relations
            mass = targets.log_mass
            pairs.append(
                InteractionPair(
                    log_attention=student_log_attention(logits, trace.valid),
                    target=resampled[:, wanted.index(t)],
                    queries=vectors
                    if vectors.dtype == torch.float64
                    else vectors.float(),
                    features=None if features is None else features[:, t],
                    relations=None if relations is None else relations[:, t],
                    logits=logits,
                    log_mass=None if mass is None else mass[:, t],
                    valid=trace.valid,
                )
            )
        return pairs, present

    @staticmethod
    def _check_rows(targets: InteractionTargets, trace: InteractionTrace) -> None:
        num_texts, num_queries = targets.maps.shape[2], trace.queries[0].shape[1]
        if num_texts != num_queries:
            raise ValueError(
                f'the teacher has {num_texts} texts, but backbone.num_queries='
                f'{num_queries}; query k belongs to text k (or set '
                'distiller.assignment)'
            )

    @torch.no_grad()
    def _assign(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets,
        resampled: Tensor,
        wanted: list[int],
    ) -> tuple[Tensor, Tensor]:
        """Find a query for every row of the targets; (B, P) and whether it has one."""
        assert self.assignment is not None
        texts = targets.texts
        if texts is None:
            count = targets.maps.shape[2]
            texts = torch.arange(count, device=targets.maps.device)
            texts = texts.expand(len(targets.maps), -1)
        attention = [
            student_log_attention(trace.logits[s], trace.valid) for s, _ in self.pairs
        ]
        layers = [wanted.index(t) for _, t in self.pairs]
        return self.assignment(
            torch.stack(attention, 1),
            take_layers(resampled, layers),
            texts,
            targets.present,
        )

    def forward(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets | None,
        img_shapes: Sequence[tuple[int, int]],
        patch_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Compute ``loss_lfi_*``; see :class:`Distiller`."""
        device = trace.logits[0].device.type
        with torch.autocast(device, enabled=False):
            if targets is None:
                parts = [*trace.logits, *trace.queries, *self.parameters()]
                zero = sum(part.flatten()[:1].float().sum() for part in parts) * 0.0
                return {f'loss_lfi_{name}': zero for name in self.losses}
            pairs, present = self.align(trace, targets, img_shapes, patch_size)
            factor = self.schedule.current()
            return {
                f'loss_lfi_{name}': factor * loss(pairs, present)
                for name, loss in self.losses.items()
            }
