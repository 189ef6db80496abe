"""Weights of backbones with queries in files."""

from __future__ import annotations

from typing import Any

from mmengine.model import PretrainedInit
from torch import Tensor


def pretrained_file(init_cfg: Any) -> str | None:
    """The file of weights that an ``init_cfg`` names, if it does."""
    for cfg in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        kind = cfg.get('type') if isinstance(cfg, dict) else None
        if kind in ('Pretrained', PretrainedInit):
            return cfg['checkpoint']
    return None


def own_weights(checkpoint: Any) -> dict[str, Tensor] | None:
    """The weights of a backbone with queries in a checkpoint, if it has any."""
    state = checkpoint.get('state_dict', checkpoint)
    for prefix in ('backbone.', ''):
        if f'{prefix}queries' in state:
            return {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
    return None
