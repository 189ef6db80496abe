import mmdet.models  # noqa: F401 - registers the detectors

from .lfi_class import LFIDetector, lfi_class, register_lfi_classes
from .lfi_mask_rcnn import LFIMaskRCNN
from .lfi_mixin import LFIMixin

register_lfi_classes()

__all__ = [
    'LFIDetector',
    'LFIMaskRCNN',
    'LFIMixin',
    'lfi_class',
    'register_lfi_classes',
]
