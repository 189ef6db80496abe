"""Load published ViT weights (DeiT, MAE, timm, mmpretrain, ViTDet) by name."""

from __future__ import annotations

import logging
import re

import torch.nn.functional as F
from mmengine.logging import print_log
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from lfi_mmdet.compat.checkpoints import load_checkpoint

# mmpretrain's names -> DeiT's
_RENAMES = (
    (re.compile(r'^layers\.'), 'blocks.'),
    (re.compile(r'^patch_embed\.projection\.'), 'patch_embed.proj.'),
    (re.compile(r'^(blocks\.\d+)\.ln(\d)\.'), r'\1.norm\2.'),
    (re.compile(r'^(blocks\.\d+)\.ffn\.layers\.0\.0\.'), r'\1.mlp.fc1.'),
    (re.compile(r'^(blocks\.\d+)\.ffn\.layers\.1\.'), r'\1.mlp.fc2.'),
    (re.compile(r'^(blocks\.\d+)\.attn\.gamma1\.weight$'), r'\1.ls1.gamma'),
    (re.compile(r'^(blocks\.\d+)\.ffn\.gamma2\.weight$'), r'\1.ls2.gamma'),
)
# What a detector's backbone has no use for, so its absence here is no surprise
_CLASSIFIER = re.compile(
    r'^(cls_token|dist_token|mask_token|norm|ln1|fc_norm|head|'
    r'head_dist|pre_logits|decoder.*)(\.|$)'
)
# What only checkpoints of this package have
_INTERACTS = re.compile(r'^(interaction\.|queries$)')
# What a classification checkpoint cannot have
_OWN = re.compile(r'^(interaction\.|queries$)|\.rel_pos_[hw]$')


def _unwrap(checkpoint: dict) -> dict[str, Tensor]:
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    return {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}


def rename_vit_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of any known ViT under DeiT's names.

    Args:
        state: Flat state dict, possibly of a whole detector or classifier.

    Returns:
        The weights below the module that holds ``patch_embed``; empty if none does.
    """
    anchor = re.compile(r'^(.*?)patch_embed\.proj(ection)?\.weight$')
    prefixes = [m.group(1) for m in map(anchor.match, state) if m]
    if not prefixes:
        return {}
    prefix = min(prefixes, key=len)
    renamed = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        key = key[len(prefix) :]
        for pattern, replacement in _RENAMES:
            key = pattern.sub(replacement, key)
        renamed[key] = value
    return renamed


def _resize(key: str, value: Tensor, like: Tensor) -> Tensor:
    """Fit positions to the model's size; everything else is returned as it is."""
    if key == 'pos_embed' and value.shape[-1] == like.shape[-1]:
        side = int(value.shape[1] ** 0.5)
        value = value[:, value.shape[1] - side * side :]  # class tokens come first
        target = int(like.shape[1] ** 0.5)
        return resample_abs_pos_embed(
            value, [target, target], [side, side], num_prefix_tokens=0
        )
    if '.rel_pos_' in key and value.shape[-1] == like.shape[-1]:
        return F.interpolate(value.T[None], size=like.shape[0], mode='linear')[0].T
    return value


def load_vit_checkpoint(model: nn.Module, checkpoint: str) -> None:
    """Load pretrained weights and log what was loaded, resized, missing, unexpected.

    Args:
        model: An :class:`InteractionViT`.
        checkpoint: Path or URL of a DeiT, MAE, timm, mmpretrain or ViTDet checkpoint,
            or of one written by this package.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, nothing matches, or it belongs to a ViT of
            another size (a weight of another shape, blocks missing or left over).
    """
    source = load_checkpoint(checkpoint)
    state = rename_vit_keys(_unwrap(source))
    own = model.state_dict()
    fitted, resized, mismatched = {}, [], []
    for key in own.keys() & state.keys():
        value = _resize(key, state[key], own[key])
        if value.shape != own[key].shape:
            mismatched.append(
                f'{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}'
            )
        elif value.shape != state[key].shape:
            resized.append(f'{key} {tuple(state[key].shape)} -> {tuple(value.shape)}')
        fitted[key] = value
    if not fitted:
        names = sorted(_unwrap(source))[:5]
        raise ValueError(
            f'checkpoint {checkpoint}: no weight matches a ViT; its first names are '
            f'{names}, expected are names like blocks.0.attn.qkv.weight'
        )
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(
        k for k in state.keys() - own.keys() if not _CLASSIFIER.match(k)
    )
    lost = [k for k in missing if not _OWN.search(k)]
    surplus = [k for k in unexpected if k.startswith('blocks.')]
    if mismatched or lost or surplus:
        wrong = sorted(mismatched) + [f'{k} missing' for k in lost]
        wrong += [f'{k} left over' for k in surplus]
        raise ValueError(
            f'checkpoint {checkpoint} is for another ViT than arch='
            f'{getattr(model, "arch_name", type(model).__name__)}: '
            + '; '.join(wrong[:4])
            + (f' and {len(wrong) - 4} more' if len(wrong) > 4 else '')
        )
    model.load_state_dict(fitted, strict=False)
    dropped = [k for k in unexpected if _INTERACTS.match(k)]
    if dropped:
        print_log(
            f'{checkpoint} was trained with queries, but this backbone has none '
            f'(num_queries=0): {len(dropped)} tensors are left out, on whose feedback '
            'its blocks may count; set num_queries and interaction_layers as in that '
            'training',
            logger='current',
            level=logging.WARNING,
        )
    print_log(
        f'{checkpoint}: loaded {len(fitted)} of {len(own)} tensors; resized: '
        f'{", ".join(resized) or "none"}; not in the checkpoint (start values kept): '
        f'{", ".join(missing) or "none"}; unexpected: '
        f'{", ".join(unexpected) or "none"}',
        logger='current',
    )
