from .interaction_backbone import InteractionBackbone
from .interaction_vit import InteractionViT
from .query_mixin import QUERY_KEYS, QueryMixin

__all__ = ['QUERY_KEYS', 'InteractionBackbone', 'InteractionViT', 'QueryMixin']
