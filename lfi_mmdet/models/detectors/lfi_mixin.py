"""Adds Learning from Interactions to an mmdet detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmdet.structures import SampleList
from mmengine.logging import print_log
from torch import Tensor

from lfi_mmdet.models.distillers import Distiller, build_distiller
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.models.teachers.presence import note_labels
from lfi_mmdet.registry import build_part
from lfi_mmdet.structures import InteractionSpec, InteractionTargets, InteractionTrace

from .regions import region_head

if TYPE_CHECKING:
    from mmdet.models.detectors.base import BaseDetector as Detector
else:
    Detector = object  # whichever mmdet detector follows in the bases


class LFIMixin(Detector):
    """Teacher and distiller beside an mmdet detector; put it before the detector.

    The detector's own methods stay as they are: the losses of the distiller join
    those of the detector, and padding is hidden from the queries in training and
    testing alike. The backbone must offer ``interactions`` and ``interaction_spec``
    as :class:`InteractionViT` does.

    Args:
        teacher: Config of a :class:`FrozenTeacher`; None trains the student alone.
        distiller: Config of a :class:`Distiller`; needed with a teacher.
        *args: For the detector.
        **kwargs: For the detector.
    """

    def __init__(
        self,
        *args: Any,
        teacher: dict | None = None,
        distiller: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        spec = self._interaction_spec()
        # never registered as a module: FrozenTeacher is no nn.Module
        self.teacher: FrozenTeacher | None = None
        self.distiller: Distiller | None = None
        supervised: tuple[int | None, int | None] = (None, None)
        if teacher is not None:
            if distiller is None:
                raise ValueError('model.teacher is given, but model.distiller is not')
            self.teacher = build_part(teacher, FrozenTeacher, 'model.teacher')
            self.distiller = build_distiller(
                distiller, spec, self.teacher, regions=region_head(self)
            )
            # present texts are asked for in every step: the host need not wait
            self.data_preprocessor.register_forward_pre_hook(note_labels)
            supervised = self.distiller.last_supervised()
            if self.teacher.class_names is not None:
                self.set_class_names(self.teacher.class_names)
        self.backbone.freeze_unreached(*supervised)

    def _interaction_spec(self) -> InteractionSpec:
        spec = getattr(self.backbone, 'interaction_spec', None)
        if not isinstance(spec, InteractionSpec):
            raise TypeError(
                f'backbone {type(self.backbone).__name__} records no interactions; '
                'choose InteractionViT'
            )
        return spec

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Give the teacher its texts, one per class.

        Raises:
            ValueError: If their number is not that of the queries tied to a class, or
                a teacher that already has texts has others.
        """
        if self.teacher is None:
            return
        assert self.distiller is not None
        self.distiller.check_classes(len(class_names))
        known = self.teacher.class_names
        if known is not None and known != tuple(class_names):
            odd = sorted(set(known) ^ set(class_names)) or 'the order'
            raise ValueError(
                f'teacher.class_names differ from those of the dataset in {odd}'
            )
        if known is None:
            self.teacher.set_class_names(class_names)
        self.distiller.check_texts(self.teacher.num_texts)

    # -- mmdet's triad ----------------------------------------------------------------
    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Detection losses and, with a teacher, ``loss_lfi_*``."""
        losses, trace, targets = self.loss_with_interactions(
            batch_inputs, batch_data_samples
        )
        if self.distiller is not None:
            losses.update(
                self.distiller(
                    trace,
                    targets,
                    [sample.img_shape for sample in batch_data_samples],
                    (self.backbone.patch_size,) * 2,
                )
            )
        return losses

    def loss_with_interactions(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[dict, InteractionTrace, InteractionTargets | None]:
        """Detection losses, what the queries did, and what the teacher did."""
        targets = None
        if self.teacher and self.distiller and self.distiller.active:
            targets = self.teacher(
                batch_inputs, batch_data_samples, self.data_preprocessor
            )
        shapes = [sample.img_shape for sample in batch_data_samples]
        record = self.distiller is not None
        with self.backbone.interactions(shapes, record=record) as trace:
            losses = super().loss(batch_inputs, batch_data_samples)
        return losses, trace, targets

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs: Any
    ) -> SampleList:
        """Predict, with padding hidden from the queries as in training."""
        shapes = [sample.img_shape for sample in batch_data_samples]
        with self.backbone.interactions(shapes, record=False):
            return super().predict(batch_inputs, batch_data_samples, **kwargs)

    # -- the teacher's contracts ------------------------------------------------------
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
