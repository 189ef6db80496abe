"""Mask R-CNN with Learning from Interactions."""

from mmdet.models.detectors import MaskRCNN
from mmdet.registry import MODELS

from .lfi_mixin import LFIMixin


@MODELS.register_module()
class LFIMaskRCNN(LFIMixin, MaskRCNN):
    """:class:`mmdet.models.MaskRCNN` with a teacher and a distiller.

    Args are those of Mask R-CNN and of :class:`LFIMixin`.
    """
