"""Writes the student alone: without teacher, distiller and training, to be deployed."""

from __future__ import annotations

import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

import lfi_mmdet
from lfi_mmdet.compat.checkpoints import load_checkpoint
from lfi_mmdet.models.backbones import QUERY_KEYS

from .inference import without_teacher
from .preflight import InputError, check_checkpoint, check_weights
from .student_config import config_of_checkpoint, keeps_queries, student_config

#: What belongs to the distiller in a checkpoint
DISTILLER = ('distiller.',)
#: Entries of a checkpoint's ``meta`` that are of use without the training
META = (
    'CLASSES',
    'PALETTE',
    'dataset_meta',
    'epoch',
    'experiment_name',
    'iter',
    'mmengine_version',
    'seed',
    'time',
)
_SUFFIXES = ('.pth', '.pt', '.ckpt')


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        weights: The checkpoint.
        config: The config beside it.
        model: Type of the detector.
        queries: Whether the queries stayed, as patches read from them.
        averaged: Whether the weights are averaged ones (EMA).
        kept: Numbers in the weights.
        dropped: Numbers left out, by part of the model.
        size: Bytes of ``weights``.
        source_size: Bytes of the checkpoint it was made from.
        has_classes: Whether it says the names of the classes.
    """

    weights: Path
    config: Path
    model: str
    queries: bool
    averaged: bool
    kept: int
    dropped: dict[str, int]
    size: int
    source_size: int
    has_classes: bool


def export_student(
    checkpoint: str,
    out: str | Path,
    cfg: Config | None = None,
    ema: bool | None = None,
    force: bool = False,
) -> Export:
    """Write weights and config of the student alone.

    Queries that write back to the patches stay; those that do not are left out, and
    the weights are then those of the plain detector.

    Args:
        checkpoint: File, as a training writes it.
        out: Checkpoint to write; the config gets the same name with ``.py``.
        cfg: Config of the training; None takes the one in the checkpoint.
        ema: Whether to take averaged weights. mmengine's ``EMAHook`` swaps both, so
            that ``state_dict`` of a checkpoint holds the averaged ones and
            ``ema_state_dict`` the last ones. None: what ``state_dict`` holds.
        force: Whether files that exist are replaced.

    Raises:
        InputError: If a file is missing, is no checkpoint, has neither queries nor a
            distiller, or does not fit the config, if something is in the way, or cannot
            be written.
    """
    weights, config = check_targets(checkpoint, Path(out), force)
    check_checkpoint(checkpoint, 'checkpoint')
    try:
        content = load_checkpoint(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error
    state, averaged = choose_weights(content, checkpoint, ema)
    if not any(key.startswith((*QUERY_KEYS, *DISTILLER)) for key in state):
        raise InputError(
            f'checkpoint {checkpoint} has no interaction weights (backbone.queries, '
            'backbone.interaction.*) and none of a distiller; it is that of a plain '
            'detector, or of none: '
            f'its first names are {sorted(state)[:4]}'
        )
    meta = content.get('meta') or {}
    if cfg is None:
        cfg = config_of_checkpoint(meta.get('cfg'), checkpoint)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    queries = keeps_queries(cfg)
    _check_fit(cfg, checkpoint)
    deployed = student_config(cfg)
    student, dropped = take_student(state, deployed, checkpoint, queries)
    text = deployed.pretty_text
    kept_meta = {key: meta[key] for key in META if key in meta}
    kept_meta.update(cfg=text, lfi_mmdet_version=lfi_mmdet.__version__)
    header = f'# Student of {Path(checkpoint).name}, without what only training needs\n'
    write_both(weights, dict(meta=kept_meta, state_dict=student), config, header + text)
    kind = deployed.model.type
    return Export(
        weights=weights,
        config=config,
        model=getattr(kind, '__name__', str(kind)),
        queries=queries,
        averaged=averaged,
        kept=_numbers(student.values()),
        dropped=dropped,
        size=weights.stat().st_size,
        source_size=os.path.getsize(checkpoint) if os.path.exists(checkpoint) else 0,
        has_classes='dataset_meta' in kept_meta or 'CLASSES' in kept_meta,
    )


def check_targets(checkpoint: str, out: Path, force: bool) -> tuple[Path, Path]:
    """Where weights and config go.

    Raises:
        InputError: If the names do not fit or something is there already.
    """
    if out.suffix not in _SUFFIXES:
        raise InputError(
            f'{out} does not end with one of {_SUFFIXES}; the config gets the same '
            'name with .py'
        )
    config = out.with_suffix('.py')
    if os.path.exists(checkpoint) and out.exists() and out.samefile(checkpoint):
        raise InputError(f'{out} is the checkpoint itself; choose another name')
    for path in (out, config):
        if path.is_dir():
            raise InputError(f'{path} is a folder; choose another name')
        if path.exists() and not force:
            raise InputError(
                f'{path} exists; choose another name, or --force to replace it'
            )
    return out, config


def choose_weights(
    content: dict[str, Any], path: str, ema: bool | None
) -> tuple[OrderedDict[str, Tensor], bool]:
    """Take averaged or last weights out of a checkpoint, under the model's own names.

    Args:
        content: The checkpoint.
        path: Its file, for messages.
        ema: See :func:`export_student`.

    Returns:
        The weights, and whether they are averaged.

    Raises:
        InputError: If it has none, or averaged ones are asked for and there are none.
    """
    other = content.get('ema_state_dict')
    if ema and other is None:
        raise InputError(
            f'checkpoint {path} has no averaged weights (ema_state_dict); leave --ema '
            "out, or train with custom_hooks=[dict(type='EMAHook')]"
        )
    swap = ema is False and other is not None
    state = other if swap else content.get('state_dict', content)
    if not isinstance(state, dict):
        raise InputError(
            f'checkpoint {path}: its weights are a {type(state).__name__}, no dict'
        )
    named: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        # the hook counts its steps among the weights
        if isinstance(value, Tensor) and (not swap or str(key).startswith('module.')):
            named[re.sub(r'^module\.', '', str(key))] = value
    if not named:
        raise InputError(
            f'checkpoint {path} holds no weights; its entries are '
            f'{sorted(map(str, content))[:6]}'
        )
    return named, other is not None and not swap


def take_student(
    state: OrderedDict[str, Tensor], deployed: Config, path: str, queries: bool
) -> tuple[OrderedDict[str, Tensor], dict[str, int]]:
    """Pick the weights of the deployed model.

    Args:
        state: Weights of the training.
        deployed: Its config, see :func:`student_config`.
        path: Checkpoint they are from, for messages.
        queries: Whether queries stay.

    Returns:
        The weights, which load strictly into the deployed model, and how many numbers
        of each other part were left out.

    Raises:
        InputError: If weights are missing, or some would get lost.
    """
    model = MODELS.build(deployed.model)
    own = model.state_dict()
    droppable = DISTILLER if queries else (*DISTILLER, *QUERY_KEYS)
    lost = [key for key in state if key not in own and not key.startswith(droppable)]
    missing = [key for key in own if key not in state]
    if lost or missing:
        wrong = [f'{key} has no place in the student' for key in lost]
        wrong += [f'{key} is not in the checkpoint' for key in missing]
        raise InputError(
            f'checkpoint {path} does not fit the config: {"; ".join(wrong[:4])}'
        )
    dropped: Counter[str] = Counter()
    for key, value in state.items():
        if key not in own:
            part = 'distiller' if key.startswith(DISTILLER) else 'interaction'
            dropped[part] += value.numel()
    # copies, as a view would be saved with all that it is a view of
    student = OrderedDict((key, state[key].detach().clone()) for key in own)
    model.load_state_dict(student, strict=True)
    return student, dict(dropped)


def write_both(weights: Path, content: dict[str, Any], config: Path, text: str) -> None:
    """Write checkpoint and config aside, and put both in place once both are whole.

    Raises:
        InputError: If they cannot be written; then nothing is left of them.
    """
    paths = (weights, config)
    asides = [path.with_name(f'.{path.name}.{os.getpid()}') for path in paths]
    placed = []
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, asides[0])
        asides[1].write_text(text)
        for aside, path in zip(asides, paths):
            os.replace(aside, path)
            placed.append(path)
    except (OSError, RuntimeError) as error:
        for path in placed:
            path.unlink()
        # torch tells of a full disk with a RuntimeError
        raise InputError(f'{weights} cannot be written: {error}') from error
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


def _check_fit(cfg: Config, checkpoint: str) -> None:
    """Compare the checkpoint with the student of the training, queries included."""
    trained = Config(dict(model=cfg.model.to_dict()))
    without_teacher(trained)
    check_weights(MODELS.build(trained.model), checkpoint, 'test')


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
