"""Learning from Interactions without labels, before any detection."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.model import BaseModel
from torch import Tensor

from lfi_mmdet.models.distillers import TeacherMixin


@MODELS.register_module()
class InteractionPretrainer(TeacherMixin, BaseModel):
    """Trains a backbone and its queries by the teacher alone.

    The weights are named as in a detector (``backbone.*``), so that the detector's
    ``backbone.init_cfg=dict(type='Pretrained', checkpoint=...)`` takes them, queries
    and interaction included. Blocks behind the last supervised interaction layer learn
    nothing here: they are frozen, and keep their start values in the checkpoint.

    Args:
        backbone: Config of an :class:`InteractionViT`.
        teacher: Config of a :class:`FrozenTeacher`. Images without labels need another
            ``present`` than ``'ground_truth'``.
        distiller: Config of a :class:`Distiller`.
        data_preprocessor: Config of the ``DetDataPreprocessor`` of the detector.
        init_cfg: As of every model of mmengine; not used.

    Raises:
        ValueError: If there is no teacher, or no loss of the distiller reaches the
            backbone.
    """

    def __init__(
        self,
        backbone: dict,
        teacher: dict,
        distiller: dict,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if teacher is None:
            raise ValueError(
                'model.teacher is None: without labels there is nothing else to learn '
                'from'
            )
        self.backbone = MODELS.build(backbone)
        self.attach_teacher(teacher, distiller)

    def forward(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        mode: str = 'loss',
    ) -> dict[str, Tensor]:
        """Compute the distiller's losses.

        Args:
            inputs: Images (B, 3, H, W) out of the data preprocessor.
            data_samples: Their data samples.
            mode: Only ``'loss'``.

        Raises:
            ValueError: For any other mode.
        """
        if mode != 'loss':
            raise ValueError(
                f'mode={mode!r}; an InteractionPretrainer only has losses, so set '
                'val_cfg and test_cfg to None'
            )
        return self.distil(inputs, data_samples)
