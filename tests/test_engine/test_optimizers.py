"""Parameter groups: who is decayed, and how fast each layer learns."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from lfi_mmdet.engine.optimizers import takes_weight_decay, vit_lr_scale
from lfi_mmdet.models.backbones import InteractionViT


@pytest.mark.parametrize(
    'name, depth',
    [
        ('backbone.patch_embed.proj.weight', 0),
        ('backbone.pos_embed', 0),
        ('backbone.blocks.0.attn.qkv.weight', 1),
        ('backbone.blocks.11.mlp.fc1.bias', 12),
        ('module.detector.backbone.net.blocks.11.norm1.weight', 12),
        ('backbone.queries', 13),
        ('backbone.interaction.read_key.weight', 13),
        ('neck.levels.0.1.weight', 13),
    ],
)
def test_the_rate_falls_with_the_depth_whatever_the_prefix(name, depth):
    assert vit_lr_scale(name, 0.7, 12) == pytest.approx(0.7 ** (13 - depth))


def test_a_block_beyond_num_layers_is_refused():
    with pytest.raises(ValueError, match='blocks.12.*num_layers=12'):
        vit_lr_scale('backbone.blocks.12.norm1.weight', 0.7, 12)


@pytest.mark.parametrize(
    'name, ndim, decays',
    [
        ('backbone.blocks.0.attn.qkv.weight', 2, True),
        ('backbone.blocks.0.attn.qkv.bias', 1, False),
        ('backbone.blocks.0.norm1.weight', 1, False),
        ('backbone.pos_embed', 3, False),
        ('backbone.blocks.0.attn.rel_pos_h', 2, False),
        ('backbone.queries', 2, False),
        ('backbone.interaction.carry', 1, False),
        ('backbone.interaction.read_query.weight', 2, True),
    ],
)
def test_norms_biases_gates_positions_and_queries_are_not_decayed(name, ndim, decays):
    assert takes_weight_decay(name, ndim) == decays


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = InteractionViT(
            dict(embed_dims=24, num_layers=2, num_heads=3), global_layers=(1,),
            num_queries=2, interaction_layers=(1,), use_rel_pos=True,
        )  # fmt: skip
        self.head = nn.Linear(24, 2)
        self.head.bias.requires_grad_(False)


def wrapper(**paramwise):
    return build_optim_wrapper(
        Detector(),
        dict(
            constructor='ViTOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
            paramwise_cfg=paramwise,
        ),
    )


def test_groups_hold_every_trainable_parameter_once_with_its_settings():
    groups = wrapper(layer_decay=0.5, num_layers=2).optimizer.param_groups
    found = {(round(g['lr'], 4), g['weight_decay']): len(g['params']) for g in groups}
    assert {lr for lr, _ in found} == {0.0125, 0.025, 0.05, 0.1}
    assert {wd for _, wd in found} == {0.0, 0.05}
    count = sum(p.numel() for g in groups for p in g['params'])
    assert count == sum(p.numel() for p in Detector().parameters()) - 2


def test_without_layer_decay_two_groups_are_enough():
    groups = wrapper(num_layers=2).optimizer.param_groups
    assert [(g['lr'], g['weight_decay']) for g in groups] == [(0.1, 0.0), (0.1, 0.05)]
    assert all(isinstance(p, torch.nn.Parameter) for g in groups for p in g['params'])


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match=r"unknown keys \['decay_rate'\]"):
        wrapper(decay_rate=0.5)
