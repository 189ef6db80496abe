from .attention import InteractionAttentionLoss
from .dense import (
    ACAMLoss,
    AttentionTransferLoss,
    CWDLoss,
    FitNetLoss,
    MGDLoss,
    RKDLoss,
    TRGLoss,
    ViLDLoss,
)
from .dynamics import InteractionDynamicsLoss
from .feature import InteractionFeatureLoss
from .relation import InteractionRelationLoss
from .text import InteractionTextLoss

__all__ = [
    'ACAMLoss',
    'AttentionTransferLoss',
    'CWDLoss',
    'FitNetLoss',
    'InteractionAttentionLoss',
    'InteractionDynamicsLoss',
    'InteractionFeatureLoss',
    'InteractionRelationLoss',
    'InteractionTextLoss',
    'MGDLoss',
    'RKDLoss',
    'TRGLoss',
    'ViLDLoss',
]
