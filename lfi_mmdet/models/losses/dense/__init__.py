"""The competitors of LFI: losses on dense features, written from their papers."""

from .acam import ACAMLoss
from .attention_transfer import AttentionTransferLoss
from .base import DenseLoss, DensePair
from .cwd import CWDLoss
from .fitnet import FitNetLoss
from .mgd import MGDLoss
from .rkd import RKDLoss
from .trg import TRGLoss
from .vild import ViLDLoss

__all__ = [
    'ACAMLoss',
    'AttentionTransferLoss',
    'CWDLoss',
    'DenseLoss',
    'DensePair',
    'FitNetLoss',
    'MGDLoss',
    'RKDLoss',
    'TRGLoss',
    'ViLDLoss',
]
