"""Tiny open_clip models with sharp attention, and what the tests do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lfi_mmdet  # noqa: F401  provides mmcv's ops before mmdet is imported

from . import tiny_timm  # noqa: F401  registers the towers

CLASSES = ('cat', 'traffic light', 'zebra')
SIDE = 32
GRID = (4, 4)

_VISION = dict(image_size=SIDE, layers=3, width=32, head_width=16, patch_size=8)
_TEXT = dict(context_length=16, vocab_size=49408, width=32, heads=4, layers=2)
_CLIP = dict(embed_dim=24, vision_cfg=_VISION, text_cfg=_TEXT)
_POOLER = dict(
    output_tokens=True,
    attentional_pool=True,
    attn_pooler_queries=8,
    attn_pooler_heads=4,
)
# 48: the pooler then has separate projections for its keys
_COCA = dict(
    embed_dim=32,
    vision_cfg=dict(_VISION, width=48, **_POOLER),
    text_cfg=dict(_TEXT, embed_cls=True, output_tokens=True),
    multimodal_cfg=dict(_TEXT, layers=3),
    custom_text=True,
)


def _vision(config: dict, **changes: Any) -> dict:
    return dict(config, vision_cfg=dict(config['vision_cfg'], **changes))


CONFIGS: dict[str, dict] = {
    'tiny-clip': _CLIP,
    'tiny-clip-scaled': dict(_vision(_CLIP, ls_init_value=0.5), custom_text=True),
    'tiny-clip-resnet': _vision(_CLIP, layers=[1, 1, 1, 1], width=8),
    'tiny-clip-timm': _vision(
        _CLIP, timm_model_name='test_vit', timm_pool='token', image_size=160
    ),
    'tiny-clip-qknorm': _vision(_CLIP, qk_norm=True, scale_attn=True),
    'tiny-clip-oneblock': _vision(_CLIP, layers=1),
    'tiny-clip-longtext': dict(_CLIP, text_cfg=dict(_TEXT, context_length=20)),
    'tiny-eva': dict(
        _vision(
            _CLIP, timm_model_name='tiny_eva_clip', timm_pool='token', timm_proj=None
        ),
        custom_text=True,
    ),
    'tiny-eva-fused': dict(
        _vision(
            _CLIP, timm_model_name='tiny_eva_fused', timm_pool='token', timm_proj=None
        ),
        custom_text=True,
    ),
    'tiny-eva-mean': dict(
        _vision(
            _CLIP, timm_model_name='tiny_eva_clip', timm_pool='avg', timm_proj=None
        ),
        custom_text=True,
    ),
    'tiny-sigmoid': dict(
        _vision(
            dict(_CLIP, embed_dim=32),
            timm_model_name='tiny_siglip',
            timm_pool='map',
            timm_proj='none',
        ),
        init_logit_bias=-10,
        custom_text=True,
    ),
    'tiny-coca': _COCA,
    'tiny-coca-parallel': _vision(_COCA, width=32, attentional_pool='parallel'),
    'tiny-coca-cascade': _vision(_COCA, width=32, attentional_pool='cascade'),
    'tiny-coca-plain': _vision(_COCA, width=32, attentional_pool=False),
}


def write_configs(folder: Path) -> str:
    """Write all tiny models as open_clip wants them; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in CONFIGS.items():
        (folder / f'{name}.json').write_text(json.dumps(config))
    return str(folder)


def sharp_network(name: str) -> Any:
    """Build a tiny model whose attention differs clearly from uniform attention."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = open_clip.create_model(name)
        for module in network.modules():
            if isinstance(module, nn.MultiheadAttention):
                for key in ('in_proj_weight', 'q_proj_weight', 'k_proj_weight'):
                    weight = getattr(module, key)
                    if weight is not None:
                        weight.data *= 3
                module.in_proj_bias.data.normal_(std=0.3)
        for name, value in network.named_parameters():
            if name.endswith('gamma'):  # of the layer scale
                value.data.uniform_(0.2, 1.5)
        for embedding in ('token_embedding.weight', 'positional_embedding'):
            owner = getattr(network, 'text', network)
            owner.get_parameter(embedding).data.normal_(std=0.5)
        if hasattr(owner, 'cls_emb') and owner.cls_emb is not None:
            owner.cls_emb.data.normal_(std=0.5)
        if hasattr(network, 'text_decoder'):  # open_clip leaves it uninitialised
            network.text_decoder.text_projection.data.normal_()
    return network.eval()


def save_sharp(name: str, folder: Path) -> tuple[Any, str]:
    """Build a tiny model and save its weights; return both."""
    network = sharp_network(name)
    file = folder / f'{name}.pt'
    torch.save(network.state_dict(), file)
    return network, str(file)


def some_images(count: int = 2, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """Images as a teacher gets them."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, height, width, generator=generator)
