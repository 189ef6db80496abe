"""Load published ViT weights (DeiT, MAE, timm, mmpretrain, ViTDet) by name."""

from __future__ import annotations

import logging
import re
from inspect import signature

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
# Settings of a backbone by the weights that it has for them
_PARTS = (
    (re.compile(r'^queries$'), 'num_queries'),
    (re.compile(r'^interaction\.(feedback\.|gamma$)'), 'feedback'),
    (re.compile(r'^interaction\.relation\.'), 'query_attention'),
    (re.compile(r'^interaction\.carry$'), 'carry'),
)
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
            another size (a weight of another shape, blocks missing or left over), or
            its queries were trained in other interaction layers.
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
    if any(_INTERACTS.match(key) for key in fitted):
        _check_layers(model, source, checkpoint)
    model.load_state_dict(fitted, strict=False)
    dropped = [k for k in unexpected if _INTERACTS.match(k)]
    if dropped:
        print_log(
            f'{checkpoint} {_what_is_lost(model, dropped)}',
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


def _what_is_lost(model: nn.Module, dropped: list[str]) -> str:
    """Tell what a backbone has no place for, and which settings would make one."""
    fed_back = any(_PARTS[1][0].match(key) for key in dropped)
    if not getattr(model, 'num_queries', 0):
        had, none = 'queries', 'num_queries=0'
        settings = 'num_queries and interaction_layers'
    else:
        parts = [
            name for part, name in _PARTS if any(part.match(key) for key in dropped)
        ]
        had = settings = ' and '.join(parts) or 'other parts of the interaction'
        none = ', '.join(f'{name}=False' for name in parts) or 'other settings'
        if 'carry' in parts and len(getattr(model, 'interaction_layers', ())) == 1:
            # nothing is carried within one layer, whatever ``carry`` says
            none = none.replace('carry=False', 'a single interaction layer')
            settings = settings.replace('carry', 'interaction_layers')
    blocks = ', on whose feedback its blocks may count' if fed_back else ''
    return (
        f'was trained with {had}, but this backbone has none ({none}): {len(dropped)} '
        f'tensors are left out{blocks}; set {settings} as in that training'
    )


def _check_layers(model: nn.Module, source: dict, checkpoint: str) -> None:
    """Check that queries go on in the interaction layers in which they were trained.

    One interaction serves all layers, so that no name or shape of a weight tells; the
    config does, which mmengine keeps in its checkpoints. Others are taken as they are.

    Raises:
        ValueError: If the layers are others.
    """
    own = tuple(getattr(model, 'interaction_layers', ()))
    meta = source.get('meta')
    if not own or not isinstance(meta, dict):
        return
    # it imports the models, and so cannot be imported above
    from lfi_mmdet.engine.student_config import stated_setting

    stated = stated_setting(meta.get('cfg'), 'model')
    backbone = stated.get('backbone') if isinstance(stated, dict) else None
    if not isinstance(backbone, dict) or not backbone.get('num_queries'):
        return  # of another kind of model
    depth = len(list(model.get_submodule('blocks').children()))
    layers = backbone.get('interaction_layers')
    if layers is None:
        layers = signature(type(model)).parameters['interaction_layers'].default
    theirs = tuple(sorted({layer % depth for layer in layers}))
    if theirs != own:
        raise ValueError(
            f'checkpoint {checkpoint} was trained with interaction_layers={theirs}, '
            f'but backbone.interaction_layers={own}: its queries would meet tokens of '
            'blocks that they do not know; set backbone.interaction_layers as in that '
            'training'
        )
