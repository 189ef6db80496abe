from .interaction_backbone import InteractionBackbone
from .interaction_vit import InteractionViT
from .query_mixin import QueryMixin

__all__ = ['InteractionBackbone', 'InteractionViT', 'QueryMixin']
