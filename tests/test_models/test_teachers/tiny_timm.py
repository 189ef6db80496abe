"""Tiny image towers of timm, as EVA-CLIP and SigLIP have them."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

__all__: list[str] = []

_SIZE = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)


def _size(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'):
        kwargs.pop(name, None)
    return {**_SIZE, **kwargs}


@register_model
def tiny_eva_clip(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Everything that is special in EVA02-B-16: rotary positions, inner norms."""
    return Eva(
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        **_size(kwargs),
    )


@register_model
def tiny_eva_fused(pretrained: bool = False, **kwargs: Any) -> Eva:
    """One projection with separate biases (EVA01), and rotary positions (PE)."""
    return Eva(
        qkv_fused=True,
        init_values=0.5,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        **_size(kwargs),
    )


@register_model
def tiny_siglip(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """No class token, and a latent that attends to the patches."""
    return VisionTransformer(class_token=False, init_values=0.5, **_size(kwargs))
