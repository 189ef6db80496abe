"""What all distillers have in common, and how one is built."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from lfi_mmdet.registry import find_part
from lfi_mmdet.structures import InteractionSpec, InteractionTargets, InteractionTrace

from ..teachers.base import FrozenTeacher
from .schedule import LossSchedule

#: Finds regions in the outputs of a backbone and tells what the student takes them
#: for. Takes the outputs, (height, width) of each image without padding and the most
#: regions per image; gives R boxes (R, 5), the first column being the image and the
#: others x1, y1, x2, y2 in pixels, and class logits (R, classes + 1), background last
RegionHead = Callable[
    [tuple[Tensor, ...], Sequence[tuple[int, int]], int], tuple[Tensor, Tensor]
]


class Distiller(BaseModule, metaclass=ABCMeta):
    """Base of what compares a student with its teacher.

    Args:
        schedule: Keyword arguments of :class:`LossSchedule`.

    Attributes:
        needs_queries: Whether the student must have queries.
        needs_regions: Whether it looks at regions, which only detectors have.
        wants_tokens: Which dense tokens the teacher shall give, one of its
            ``token_dims``; None for none.
        regions: What finds and classifies regions, if it looks at them.
    """

    needs_queries = True
    needs_regions = False
    wants_tokens: str | None = None

    def __init__(self, schedule: dict | None = None) -> None:
        super().__init__()
        unknown = sorted(set(schedule or {}) - {'interval', 'stop', 'warmup'})
        if unknown:
            raise ValueError(
                f'distiller.schedule={schedule}: unknown {unknown}; choose from '
                "['interval', 'stop', 'warmup']"
            )
        self.schedule = LossSchedule(**(schedule or {}))
        self.regions: RegionHead | None = None

    @staticmethod
    @abstractmethod
    def ask(teacher: FrozenTeacher) -> dict[str, Any]:
        """What the constructor has to know about a teacher, as keyword arguments."""

    @property
    def parts(self) -> list[Distiller]:
        """What compares something: this one, or those it is made of."""
        return [self]

    @property
    @abstractmethod
    def loss_names(self) -> list[str]:
        """Names of the losses, as :meth:`forward` gives them."""

    @property
    def active(self) -> bool:
        """Whether the teacher is needed in this iteration."""
        return self.schedule.current() > 0

    def connect_regions(self, regions: RegionHead) -> None:
        """Tell what finds and classifies regions, if it looks at them."""
        self.regions = regions

    def last_supervised(self) -> tuple[int | None, int | None]:
        """Last interaction layer whose maps, and whose queries, a loss looks at."""
        return None, None

    def last_output(self) -> int | None:
        """Index of the last output of the backbone that a loss looks at."""
        return max(self.read_outputs(), default=None)

    def read_outputs(self) -> list[int]:
        """Indices of all outputs of the backbone that a loss looks at."""
        return []

    def check_classes(self, num_classes: int, num_more: int = 0) -> None:
        """Check that the texts fit the student; called before they are encoded.

        Args:
            num_classes: Number of classes.
            num_more: Number of the teacher's ``more_texts``.
        """
        del num_classes, num_more

    def check_texts(self, num_texts: int) -> None:
        """Check that the rows of the teacher's targets fit the student."""
        del num_texts

    @abstractmethod
    def forward(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets | None,
        img_shapes: Sequence[tuple[int, int]],
        patch_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Compute all losses.

        ``targets`` is None in iterations without distillation: the losses are then 0,
        but still part of the graph, since DDP expects gradients for the same
        parameters in every iteration.

        Args:
            trace: What the backbone recorded.
            targets: What the teacher gave for the same batch.
            img_shapes: (height, width) in pixels of each image without padding.
            patch_size: Height and width of a student's patch in pixels.

        Returns:
            Weighted losses; their names start with ``loss_``.
        """


def build_distiller(
    cfg: dict,
    student: InteractionSpec,
    teacher: FrozenTeacher,
    regions: RegionHead | None = None,
) -> Distiller:
    """Build a distiller and tell the teacher what it has to give.

    Args:
        cfg: Config of a :class:`Distiller`.
        student: What the backbone records.
        teacher: The teacher.
        regions: What finds and classifies regions; None where nothing does, as in
            training without labels.

    Raises:
        ValueError: If the student or the teacher has not what the distiller needs.
    """
    distiller = build_part_distiller(cfg, student, teacher, 'model.distiller')
    if distiller.needs_regions:
        if regions is None:
            raise ValueError(
                'model.distiller: a loss looks at regions, which need a detector with '
                'an RPN and one class branch for all its regions (StandardRoIHead); '
                'leave it out, or train such a detector'
            )
        distiller.connect_regions(regions)
    if distiller.wants_tokens is not None:
        teacher.wants_tokens = distiller.wants_tokens
    return distiller


def build_part_distiller(
    cfg: dict, student: InteractionSpec, teacher: FrozenTeacher, key: str
) -> Distiller:
    """Build a distiller that may be one of several.

    Args:
        cfg: Config of a :class:`Distiller`.
        student: What the backbone records.
        teacher: The teacher; it is asked, and not told anything.
        key: Where ``cfg`` stands in the config, for error messages.

    Raises:
        ValueError: If the student or the teacher has not what the distiller needs.
    """
    kind = find_part(cfg, Distiller, key)
    if kind.needs_queries and not student.num_queries:
        raise ValueError(
            'model.teacher is given, but backbone.num_queries=0: there is nothing to '
            f'supervise for {key} ({kind.__name__}); only FeatureDistiller needs no '
            'queries'
        )
    return MODELS.build({**cfg, 'student': student, **kind.ask(teacher)})
