"""What a model that learns from a teacher does, with or without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmdet.structures import SampleList
from mmengine.logging import print_log
from torch import Tensor, nn

from lfi_mmdet.registry import build_part
from lfi_mmdet.structures import InteractionSpec, InteractionTargets, InteractionTrace

from ..teachers.base import FrozenTeacher
from ..teachers.presence import note_labels
from ..utils.preprocessor import plain_preprocessor
from .base import Distiller, RegionHead, build_distiller
from .defaults import default_distiller

if TYPE_CHECKING:
    from mmengine.model import BaseModel as Model
else:
    Model = object  # whichever model of mmengine follows in the bases


class TeacherMixin(Model):
    """Keeps the contracts of a frozen teacher (DESIGN section 4) and asks it.

    Put it before a model of mmengine that has a ``backbone`` with ``interactions`` and
    ``interaction_spec``, such as :class:`InteractionViT`, and call
    :meth:`attach_teacher` at the end of the constructor.

    Attributes:
        teacher: Never registered as a module; None if the student is alone.
        distiller: Compares student and teacher; None without a teacher.
    """

    backbone: Any
    data_preprocessor: nn.Module
    teacher: FrozenTeacher | None
    distiller: Distiller | None

    def attach_teacher(
        self,
        teacher: dict | None,
        distiller: dict | None,
        regions: RegionHead | None = None,
        read_outputs: Sequence[int] | None = None,
    ) -> None:
        """Build teacher and distiller, and freeze what no loss will reach.

        Args:
            teacher: Config of a :class:`FrozenTeacher`; None for none.
            distiller: Config of a :class:`Distiller`; None for that of
                :func:`default_distiller`.
            regions: See :func:`build_distiller`.
            read_outputs: Indices of the outputs of the backbone that other losses than
                the distiller's look at; None if there are no such losses.

        Raises:
            TypeError: If the backbone records no interactions.
            ValueError: If teacher and distiller do not fit.
        """
        spec = getattr(self.backbone, 'interaction_spec', None)
        if not isinstance(spec, InteractionSpec):
            raise TypeError(
                f'backbone {type(self.backbone).__name__} records no interactions: '
                'give it queries by model.interaction=dict(num_queries=...), or choose '
                'InteractionViT'
            )
        self.teacher = self.distiller = None
        supervised: tuple[int | None, int | None] = (None, None)
        pretraining = read_outputs is None
        read = list(read_outputs or [])
        if teacher is not None:
            # never registered as a module: FrozenTeacher is no nn.Module
            self.teacher = build_part(teacher, FrozenTeacher, 'model.teacher')
            self.distiller = build_distiller(
                distiller or default_distiller(spec, self.teacher),
                spec,
                self.teacher,
                regions,
            )
            # present texts are asked for in every step: the host need not wait
            self.image_preprocessor.register_forward_pre_hook(note_labels)
            supervised = self.distiller.last_supervised()
            read += self.distiller.read_outputs()
            if self.teacher.class_names is not None:
                self.set_class_names(self.teacher.class_names)
        # some count from the first output, some from the last
        read = sorted({i % len(spec.output_dims) for i in read})
        last = read[-1] if read else None
        self.backbone.freeze_unreached(*supervised, last, read, pretraining)

    @property
    def image_preprocessor(self) -> Any:
        """The data preprocessor of a single batch; the teacher undoes its work."""
        return plain_preprocessor(self.data_preprocessor)

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Give the teacher its texts, one per class; its ``more_texts`` follow them.

        Raises:
            ValueError: If the number of texts is not that of the queries tied to one,
                or a teacher that already has texts has others.
        """
        if self.teacher is None:
            return
        assert self.distiller is not None
        self.distiller.check_classes(len(class_names), len(self.teacher.more_texts))
        known = self.teacher.class_names
        if known is not None and known != tuple(class_names):
            odd = sorted(set(known) ^ set(class_names)) or 'the order'
            raise ValueError(
                f'teacher.class_names differ from those of the dataset in {odd}'
            )
        if known is None:
            self.teacher.set_class_names(class_names)
        self.distiller.check_texts(self.teacher.num_texts)

    # -- distillation ------------------------------------------------------------------
    def teacher_targets(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> InteractionTargets | None:
        """What the teacher says; None in iterations without distillation."""
        if self.teacher is None or self.distiller is None or not self.distiller.active:
            return None
        return self.teacher(batch_inputs, batch_data_samples, self.image_preprocessor)

    def compare(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets | None,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """The distiller's losses for what student and teacher did."""
        assert self.distiller is not None
        return self.distiller(
            trace,
            targets,
            [sample.img_shape for sample in batch_data_samples],
            (self.backbone.patch_size,) * 2,
        )

    def distil(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """The distiller's losses of images, for which the backbone alone is run.

        Args:
            batch_inputs: (B, 3, H, W) out of the data preprocessor.
            batch_data_samples: Their data samples; labels are only needed if the
                teacher's ``present`` asks for them.
        """
        targets = self.teacher_targets(batch_inputs, batch_data_samples)
        shapes = [sample.img_shape for sample in batch_data_samples]
        with self.backbone.interactions(shapes, record=True) as trace:
            self.backbone(batch_inputs)
        return self.compare(trace, targets, batch_data_samples)

    # -- the teacher's contracts -------------------------------------------------------
    def init_weights(self) -> None:
        """Initialise the student and check that the teacher is untouched."""
        super().init_weights()
        if self.teacher is not None:
            self.teacher.verify()
            print_log(
                f'teacher {type(self.teacher).__name__} verified after init_weights',
                logger='current',
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        if self.teacher is not None:
            self.teacher.apply_(fn)
        return self
