"""Several distillers at once, such as LFI beside feature distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mmdet.registry import MODELS
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionSpec, InteractionTargets, InteractionTrace

from ..teachers.base import FrozenTeacher
from .base import Distiller, RegionHead, build_part_distiller


@MODELS.register_module()
class CombinedDistiller(Distiller):
    """Compare one student with one teacher in several ways, and add up the losses.

    Where the teacher looks and what it returns are two kinds of knowledge::

        distiller=dict(
            type='CombinedDistiller',
            distillers=dict(
                interactions=dict(type='InteractionDistiller', losses=...),
                features=dict(type='FeatureDistiller', losses=...)))

    The teacher runs once for all of them, and the losses keep the names that they have
    alone. Each distiller has its own schedule; the teacher rests in iterations in which
    none needs it.

    Args:
        student: What the backbone records.
        teacher: The teacher; is not kept.
        distillers: Configs of :class:`Distiller` by short name. None switches one off.

    Raises:
        ValueError: If there is none, if two want different dense tokens of the teacher,
            count the outputs of the backbone from different ends, or name a loss alike.
    """

    # each part that needs them says so when it is built
    needs_queries = False

    def __init__(
        self,
        student: InteractionSpec,
        teacher: FrozenTeacher,
        distillers: dict[str, dict | None],
    ) -> None:
        super().__init__()
        built = {
            name: build_part_distiller(
                cfg, student, teacher, f'model.distiller.distillers.{name}'
            )
            for name, cfg in distillers.items()
            if cfg is not None
        }
        if not built:
            raise ValueError(
                'distiller.distillers names none; set model.teacher=None to train the '
                'student alone'
            )
        wanted = {name: part.wants_tokens for name, part in built.items()}
        kinds = {kind for kind in wanted.values() if kind is not None}
        if len(kinds) > 1:
            raise ValueError(
                f'distiller.distillers want different tokens of the teacher, {wanted}; '
                'give them the same, by their "tokens"'
            )
        self.wants_tokens = next(iter(kinds), None)
        self.needs_regions = any(part.needs_regions for part in built.values())
        self.distillers = nn.ModuleDict(built)
        self.read_outputs()  # raises, if there is no telling
        self._check_names()

    def _check_names(self) -> None:
        names: dict[str, str] = {}
        for part_name, part in self.children_by_name.items():
            for loss_name in part.loss_names:
                if loss_name in names:
                    raise ValueError(
                        f'distiller.distillers.{names[loss_name]} and .{part_name} '
                        f'both have a {loss_name!r}; give their losses other names'
                    )
                names[loss_name] = part_name

    @staticmethod
    def ask(teacher: FrozenTeacher) -> dict[str, Any]:
        """The teacher itself, which is asked by each part."""
        return dict(teacher=teacher)

    @property
    def children_by_name(self) -> dict[str, Distiller]:
        """Those it is made of."""
        return cast(dict[str, Distiller], dict(self.distillers.items()))

    @property
    def parts(self) -> list[Distiller]:
        """All that compare something."""
        return [
            inner for part in self.children_by_name.values() for inner in part.parts
        ]

    @property
    def loss_names(self) -> list[str]:
        """Names of all losses."""
        return [
            name for part in self.children_by_name.values() for name in part.loss_names
        ]

    @property
    def active(self) -> bool:
        """Whether any of them needs the teacher in this iteration."""
        return any(part.active for part in self.children_by_name.values())

    def connect_regions(self, regions: RegionHead) -> None:
        """Hand them to all that look at regions."""
        for part in self.children_by_name.values():
            if part.needs_regions:
                part.connect_regions(regions)

    def last_supervised(self) -> tuple[int | None, int | None]:
        """The last of all; see :class:`Distiller`."""
        found = [part.last_supervised() for part in self.children_by_name.values()]
        maps, queries = (
            max((x for x in column if x is not None), default=None)
            for column in zip(*found)
        )
        return maps, queries

    def read_outputs(self) -> list[int]:
        """Those of all; see :class:`Distiller`."""
        outputs = {
            name: part.read_outputs() for name, part in self.children_by_name.items()
        }
        found = [output for some in outputs.values() for output in some]
        if found and min(found) < 0 <= max(found):
            raise ValueError(
                f'distiller.distillers look at the outputs {outputs} of the backbone, '
                'counted from both ends; count from one'
            )
        return found

    def check_classes(self, num_classes: int, num_more: int = 0) -> None:
        """Ask each; see :class:`Distiller`."""
        for part in self.children_by_name.values():
            part.check_classes(num_classes, num_more)

    def check_texts(self, num_texts: int) -> None:
        """Ask each; see :class:`Distiller`."""
        for part in self.children_by_name.values():
            part.check_texts(num_texts)

    def forward(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets | None,
        img_shapes: Sequence[tuple[int, int]],
        patch_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Compute the losses of all; see :class:`Distiller`."""
        losses: dict[str, Tensor] = {}
        for part in self.children_by_name.values():
            # one that rests is not compared, and its losses are 0, as when it is alone
            shown = targets if part.active else None
            losses.update(part(trace, shown, img_shapes, patch_size))
        return losses
