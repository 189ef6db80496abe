from .attention import InteractionAttentionLoss
from .dynamics import InteractionDynamicsLoss
from .feature import InteractionFeatureLoss
from .relation import InteractionRelationLoss

__all__ = [
    'InteractionAttentionLoss',
    'InteractionDynamicsLoss',
    'InteractionFeatureLoss',
    'InteractionRelationLoss',
]
