"""Adds Learning from Interactions to an mmdet detector."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from mmdet.models.utils import rename_loss_dict, reweight_loss_dict
from mmdet.structures import SampleList
from torch import Tensor

from lfi_mmdet.models.distillers import TeacherMixin
from lfi_mmdet.models.teachers import CachedTeacher
from lfi_mmdet.models.teachers.wrapper import innermost, present_by_labels
from lfi_mmdet.structures import InteractionTargets, InteractionTrace

from .read_outputs import read_outputs
from .regions import region_head
from .with_queries import with_queries

if TYPE_CHECKING:
    from mmdet.models.detectors.base import BaseDetector as Detector
else:
    Detector = object  # whichever mmdet detector follows in the bases

#: Images with labels, and images without
BRANCHES = ('sup', 'unsup')


class LFIMixin(TeacherMixin, Detector):
    """Teacher and distiller beside an mmdet detector; put it before the detector.

    The detector's own methods stay as they are: the losses of the distiller join
    those of the detector, and padding is hidden from the queries in training and
    testing alike. The backbone must be one with queries, such as
    :class:`InteractionViT`, or is given them by ``interaction``.

    Batches may mix images with labels and images without, as mmdet's semi-supervised
    detectors take them (``MultiBranchDataPreprocessor``, branches ``'sup'`` and
    ``'unsup'``). Images without labels run through the backbone only and feel nothing
    but the distillation. A loss on regions (:class:`ViLDLoss`) runs neck, RPN and box
    head on them as well; neck and box head then feel it too.

    Args:
        interaction: Arguments of :func:`InteractionBackbone` but ``backbone``; the
            backbone is then given queries, one per class unless told otherwise. None
            if it has them itself.
        teacher: Config of a :class:`FrozenTeacher`; None trains the student alone.
        distiller: Config of a :class:`Distiller`; None for the losses of the paper as
            far as the teacher allows, see :func:`default_distiller`.
        sup_weight: Weight of the distillation on the images with labels of a mixed
            batch; at 0 they are spared the teacher, and feel their labels only.
        unsup_weight: Weight of the distillation on images without labels; its losses
            are logged as ``unsup_loss_*``.
        sup_labels: On images with labels, also in a mixed batch, labels say which
            texts are present. Otherwise the teacher's ``present`` does so on all.
        *args: For the detector.
        **kwargs: For the detector.
    """

    def __init__(
        self,
        *args: Any,
        interaction: dict | None = None,
        teacher: dict | None = None,
        distiller: dict | None = None,
        sup_weight: float = 1.0,
        unsup_weight: float = 1.0,
        sup_labels: bool = False,
        **kwargs: Any,
    ) -> None:
        if interaction is not None:
            kwargs['backbone'] = with_queries(kwargs, interaction)
        super().__init__(*args, **kwargs)
        if sup_weight < 0:
            raise ValueError(f'model.sup_weight={sup_weight} is less than 0')
        if unsup_weight <= 0:
            raise ValueError(
                f'model.unsup_weight={unsup_weight} is not more than 0; to use no '
                'images without labels, leave them out of the dataset'
            )
        self.sup_weight, self.unsup_weight = sup_weight, unsup_weight
        self.sup_labels = sup_labels
        self.attach_teacher(
            teacher,
            distiller,
            region_head(self),
            read_outputs=read_outputs(self),
        )
        if sup_labels and self.teacher is not None:
            parts = innermost(self.teacher)
            if any(isinstance(part, CachedTeacher) for part in parts):
                raise ValueError(
                    'model.sup_labels=True does not go with CachedTeacher, whose texts '
                    'are chosen in the data loader: set `present` of LoadCachedTargets '
                    'in the pipeline of each branch'
                )

    # -- mmdet's triad ----------------------------------------------------------------
    def loss(
        self,
        batch_inputs: Tensor | dict[str, Tensor],
        batch_data_samples: SampleList | dict[str, SampleList],
    ) -> dict:
        """Detection losses and, with a teacher, those of the distiller.

        Args:
            batch_inputs: (B, 3, H, W); of a mixed batch, one per branch.
            batch_data_samples: Data samples; of a mixed batch, a list per branch.

        Raises:
            ValueError: If a mixed batch has other branches than ``'sup'`` and
                ``'unsup'``.
        """
        if isinstance(batch_inputs, dict):
            return self.loss_of_branches(batch_inputs, batch_data_samples)
        losses, trace, targets = self.loss_with_interactions(
            batch_inputs, batch_data_samples
        )
        if self.distiller is not None:
            losses.update(self.compare(trace, targets, batch_data_samples))
        return losses

    def loss_of_branches(
        self, inputs: dict[str, Tensor], samples: dict[str, SampleList]
    ) -> dict:
        """Losses of a mixed batch; see :meth:`loss`.

        Without a teacher, images without labels have nothing to teach and are left
        alone.
        """
        if set(inputs) != set(BRANCHES):
            raise ValueError(
                f'a mixed batch has the branches {sorted(inputs)}; MultiBranch.'
                f'branch_field must be {list(BRANCHES)}'
            )
        images, labelled = inputs['sup'], samples['sup']
        if self.distiller is None or self.sup_weight == 0:
            losses = self._detection_loss(images, labelled)
        else:
            losses, trace, targets = self.loss_with_interactions(images, labelled)
            distilled = self.compare(trace, targets, labelled)
            losses.update(reweight_loss_dict(distilled, self.sup_weight))
        if self.distiller is not None:
            distilled = self.distil(inputs['unsup'], samples['unsup'])
            distilled = reweight_loss_dict(distilled, self.unsup_weight)
            losses.update(rename_loss_dict('unsup_', distilled))
        return losses

    def loss_with_interactions(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[dict, InteractionTrace, InteractionTargets | None]:
        """Detection losses, what the queries did, and what the teacher did.

        Args:
            batch_inputs: (B, 3, H, W), of images with labels.
            batch_data_samples: Theirs.
        """
        with self._labelled_presence():
            targets = self.teacher_targets(batch_inputs, batch_data_samples)
        shapes = [sample.img_shape for sample in batch_data_samples]
        record = self.distiller is not None
        with self.backbone.interactions(shapes, record=record) as trace:
            losses = super().loss(batch_inputs, batch_data_samples)
        return losses, trace, targets

    def _labelled_presence(self) -> AbstractContextManager:
        """The rule by which texts are present in images with labels."""
        if not self.sup_labels or self.teacher is None:
            return nullcontext()
        return present_by_labels(self.teacher)

    def _detection_loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict:
        """Detection losses alone, with padding hidden from the queries."""
        shapes = [sample.img_shape for sample in batch_data_samples]
        with self.backbone.interactions(shapes, record=False):
            return super().loss(batch_inputs, batch_data_samples)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs: Any
    ) -> SampleList:
        """Predict, with padding hidden from the queries as in training."""
        shapes = [sample.img_shape for sample in batch_data_samples]
        with self.backbone.interactions(shapes, record=False):
            return super().predict(batch_inputs, batch_data_samples, **kwargs)
