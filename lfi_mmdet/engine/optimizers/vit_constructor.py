"""Parameter groups of a ViT detector: weight decay and layer-wise learning rates."""

from __future__ import annotations

import re

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

_BLOCK = re.compile(r'(?:^|\.)blocks\.(\d+)\.')
_NO_DECAY = re.compile(r'(?:^|\.)(pos_embed|rel_pos_[hw]|queries)$')


def vit_lr_scale(name: str, layer_decay: float, num_layers: int) -> float:
    """Learning-rate factor of a parameter under layer-wise decay.

    Embeddings have depth 0, block i has depth i + 1, and everything else (neck, heads,
    interaction) depth ``num_layers + 1``; the factor is
    ``layer_decay ** (num_layers + 1 - depth)`` as in BEiT and ViTDet.

    Args:
        name: Dotted name, with any prefix a wrapper may add.
        layer_decay: Factor per layer; 1 for none.
        num_layers: Blocks of the ViT.

    Raises:
        ValueError: If the name holds a block beyond ``num_layers``.
    """
    block = _BLOCK.search(name)
    if block:
        depth = int(block.group(1)) + 1
        if depth > num_layers:
            raise ValueError(
                f'{name} lies beyond paramwise_cfg.num_layers={num_layers}'
            )
    elif 'patch_embed.' in name or name.endswith('pos_embed'):
        depth = 0
    else:
        depth = num_layers + 1
    return layer_decay ** (num_layers + 1 - depth)


def takes_weight_decay(name: str, ndim: int) -> bool:
    """Whether a parameter is decayed: not norms, biases, gates, positions, queries.

    Args:
        name: Dotted name, with any prefix.
        ndim: Dimensions of the parameter; all norms, biases and gates have one.
    """
    return ndim > 1 and not _NO_DECAY.search(name)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ViTOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Group the trainable parameters by learning rate and weight decay.

    ``paramwise_cfg`` takes ``layer_decay`` (default 1.0) and ``num_layers`` (default
    12), see :func:`vit_lr_scale`.
    """

    def _validate_cfg(self) -> None:
        self.paramwise_cfg: dict = dict(self.paramwise_cfg or {})
        cfg = self.paramwise_cfg
        unknown = cfg.keys() - {'layer_decay', 'num_layers'}
        if unknown:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg has unknown keys {sorted(unknown)}; '
                "choose from ['layer_decay', 'num_layers']"
            )
        cfg.setdefault('layer_decay', 1.0)
        cfg.setdefault('num_layers', 12)

    def add_params(
        self, params: list[dict], module: nn.Module, **kwargs: object
    ) -> None:
        """Append one group per pair of learning rate and weight decay."""
        groups: dict[tuple[float, bool], dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = vit_lr_scale(name, **self.paramwise_cfg)
            decays = takes_weight_decay(name, parameter.ndim)
            group = groups.setdefault(
                (scale, decays),
                dict(
                    params=[],
                    lr=self.base_lr * scale,
                    weight_decay=(self.base_wd or 0.0) if decays else 0.0,
                ),
            )
            group['params'].append(parameter)
        params.extend(groups[key] for key in sorted(groups))
