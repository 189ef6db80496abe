from .vit_constructor import (
    ViTOptimWrapperConstructor,
    takes_weight_decay,
    vit_lr_scale,
)

__all__ = ['ViTOptimWrapperConstructor', 'takes_weight_decay', 'vit_lr_scale']
