from .lfi_mask_rcnn import LFIMaskRCNN
from .lfi_mixin import LFIMixin

__all__ = ['LFIMaskRCNN', 'LFIMixin']
