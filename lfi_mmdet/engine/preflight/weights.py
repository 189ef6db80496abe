"""Check that a checkpoint is for the model at hand."""

from __future__ import annotations

import logging
import re
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from lfi_mmdet.compat.checkpoints import load_checkpoint

from .errors import InputError

_SHOWN = 4
PURPOSES = ('start', 'resume', 'test')


def check_weights(model: nn.Module, path: str, purpose: str) -> None:
    """Check names and shapes of a checkpoint; mmengine itself only warns.

    To ``'resume'`` or ``'test'``, the checkpoint has to have every weight of the model,
    and none besides for the parts the model has; what other parts (a distiller that is
    not built for testing) left in the file does not matter. To ``'start'`` from, it may
    lack weights, and those that depend on the classes may be of another size: the last
    layers of the heads and the queries then keep their start values, as usual in
    fine-tuning.

    Args:
        model: Possibly wrapped for distributed training or test-time augmentation.
            The checkpoint is loaded into it.
        path: File or address of the checkpoint.
        purpose: One of :data:`PURPOSES`.

    Raises:
        InputError: If it cannot be read or does not fit.
    """
    if purpose not in PURPOSES:
        raise ValueError(f'purpose={purpose!r}; choose from {PURPOSES}')
    model = unwrap_model(model)
    state = _read(path)
    own = model.state_dict()
    _check_shapes(model, own, state, path, purpose)
    fitting = {
        k: v for k, v in state.items() if k not in own or own[k].shape == v.shape
    }
    # modules may bring older names up to date while they load
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    if len(missing) == len(own):
        raise InputError(
            f'checkpoint {path} has no weight of this model; its first names are '
            f'{sorted(state)[:_SHOWN]}, those of the model {sorted(own)[:_SHOWN]}'
        )
    if purpose == 'start':
        return
    parts = {name for name, _ in model.named_children()}
    lost = [k for k in missing if not k.endswith('num_batches_tracked')]
    surplus = [k for k in unexpected if k.partition('.')[0] in parts]
    if lost or surplus:
        wrong = [f'{k} is not in the checkpoint' for k in lost]
        wrong += [f'{k} is not in the model' for k in surplus]
        raise InputError(f'checkpoint {path} is for another model: {_some(wrong)}')


def unwrap_model(model: Any) -> Any:
    """Take off wrappers for distributed training and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _read(path: str) -> dict[str, Tensor]:
    try:
        checkpoint = load_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict):
        raise InputError(
            f'checkpoint {path}: its state_dict is a {type(state).__name__}, no dict'
        )
    state = {re.sub(r'^module\.', '', str(key)): v for key, v in state.items()}
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _check_shapes(
    model: nn.Module,
    own: dict[str, Tensor],
    state: dict[str, Tensor],
    path: str,
    purpose: str,
) -> None:
    heads = tuple(
        f'{name}.'
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and not name.endswith('rpn_head')  # its only class is "object"
    )
    wrong, kept = [], []
    for key in sorted(own.keys() & state.keys()):
        ours, theirs = tuple(own[key].shape), tuple(state[key].shape)
        if ours == theirs:
            continue
        text = f'{key} has shape {theirs}, the model needs {ours}'
        by_class = key.startswith(heads) or key.endswith('.queries')
        if purpose == 'start' and by_class and ours[1:] == theirs[1:]:
            kept.append(text)
        else:
            wrong.append(text)
    if wrong:
        raise InputError(
            f'checkpoint {path} is for a model of another size: {_some(wrong)}'
        )
    if kept:
        print_log(
            f'checkpoint {path} is for other classes; these weights keep their start '
            f'values: {"; ".join(kept)}',
            logger='current',
            level=logging.WARNING,
        )


def _some(wrong: list[str]) -> str:
    more = f'; and {len(wrong) - _SHOWN} more' if len(wrong) > _SHOWN else ''
    return '; '.join(wrong[:_SHOWN]) + more
