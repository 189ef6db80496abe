"""What the bytes of a checkpoint are made of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from lfi_mmdet.models.backbones import QUERY_KEYS

from .train_step import TrainStep

#: How names of the parts start that LFI adds to a detector
PARTS = dict(
    interaction=QUERY_KEYS,
    distiller=('distiller.',),
)


def part_of(name: str, known: set[str]) -> str:
    """Which part of a detector a weight belongs to.

    Args:
        name: Its name in a state dict.
        known: Names of the weights of the twin.

    Returns:
        ``'detector'``, one of ``PARTS``, or ``'other'``.
    """
    if name in known:
        return 'detector'
    for part, starts in PARTS.items():
        if name.startswith(starts):
            return part
    return 'other'


def save_as_training_does(step: TrainStep, folder: str | Path) -> Path:
    """Have mmengine's runner write a checkpoint, with the optimizer's state.

    Args:
        step: Model and optimizer, after at least one step.
        folder: Where the file is written.
    """
    batches: Any = [step.data]
    runner = Runner(
        model=step.model,
        work_dir=str(folder),
        train_dataloader=DataLoader(batches, batch_size=None),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
        optim_wrapper=step.optimizer,
        default_scope='mmdet',
        default_hooks=dict(logger=None),
        experiment_name=Path(folder).name,
        log_level='ERROR',
    )
    runner.save_checkpoint(
        str(folder), 'checkpoint.pth', save_param_scheduler=False, by_epoch=False
    )
    return Path(folder) / 'checkpoint.pth'


def checkpoint_bytes(step: TrainStep, twin: BaseDetector) -> dict[str, Any]:
    """Write a checkpoint and account for all that is in it.

    Args:
        step: Model and optimizer.
        twin: The detector without LFI.

    Returns:
        Bytes of the file; of its tensors, weights and optimizer state together, by
        part: ``detector``, ``interaction``, ``distiller``, and ``teacher``, which is
        everything that belongs to none of them; and ``container``, what the file holds
        besides tensors: names, numbers and the format itself.
    """
    step.prepare()
    with tempfile.TemporaryDirectory() as folder:
        path = save_as_training_does(step, folder)
        size = path.stat().st_size
        checkpoint = torch.load(path, map_location='cpu', weights_only=False)
    known = set(twin.state_dict())
    sizes = dict.fromkeys(('detector', *PARTS, 'other'), 0)
    for name, tensor in checkpoint['state_dict'].items():
        sizes[part_of(name, known)] += _size(tensor)
    for name, state in _optimizer_states(step, checkpoint['optimizer']):
        sizes[part_of(name, known)] += sum(map(_size, _tensors(state)))
    # a placeholder that mmengine saves beside the optimizer's groups
    settings = checkpoint['optimizer'].get('base_param_settings')
    sizes['detector'] += sum(map(_size, _tensors(settings)))
    whole = sum(map(_size, _tensors(checkpoint)))
    counted = sizes['detector'] + sum(sizes[part] for part in PARTS)
    del sizes['other']
    return dict(file=size, **sizes, teacher=whole - counted, container=size - whole)


def _optimizer_states(step: TrainStep, saved: dict) -> Iterator[tuple[str, Any]]:
    """Names of parameters with what the optimizer keeps for each of them."""
    names = {id(p): name for name, p in step.model.named_parameters()}
    for mine, theirs in zip(step.optimizer.param_groups, saved['param_groups']):
        for parameter, index in zip(mine['params'], theirs['params']):
            # a parameter that is none of the model's belongs to no part of it
            yield names.get(id(parameter), 'teacher'), saved['state'].get(index, {})


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
