from .interaction_vit import InteractionViT

__all__ = ['InteractionViT']
