"""Writes a trained model for others: weights, config, log and their record."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from lfi_mmdet.compat.checkpoints import load_checkpoint
from lfi_mmdet.version import __version__

from .digest import file_digest
from .export import DISTILLER, META, choose_weights
from .inference import forget_weights, without_teacher
from .preflight import InputError, check_checkpoint
from .student_config import config_of_checkpoint

#: Where published weights have the config of their training
TRAINING_CFG = 'training_cfg'
#: Settings of one run on one machine
_OF_A_RUN = ('launcher', 'load_from', 'resume', 'work_dir')


@dataclass(frozen=True)
class Published:
    """What was written.

    Attributes:
        weights: The checkpoint; its name holds the first digits of the digest.
        config: The config of the training.
        log: Copy of the log; None if none was given.
        record: JSON file that tells the digest and where the weights come from.
        sha256: Digest of the checkpoint.
        size: Its bytes.
        averaged: Whether the weights are averaged ones (EMA).
    """

    weights: Path
    config: Path
    log: Path | None
    record: Path
    sha256: str
    size: int
    averaged: bool


def publish_model(
    checkpoint: str,
    folder: str | Path,
    name: str,
    log: str | Path | None = None,
    ema: bool | None = None,
    facts: dict[str, Any] | None = None,
    force: bool = False,
    fp16: bool = False,
    metrics: str | Path | None = None,
) -> Published:
    """Strip a checkpoint of everything of the training, and name it by its digest.

    The optimizer, second copies of the weights, message hubs and the distiller go; the
    queries stay. For a student without them, see :func:`export_student`. The config
    beside the weights is that of the training; the one within them has no teacher, so
    that ``DetInferencer`` needs none.

    Args:
        checkpoint: File, as a training writes it, which holds its config.
        folder: Where to write.
        name: Of the model, e.g. that of its config.
        log: Its log, such as ``vis_data/scalars.json``.
        ema: Which weights, see :func:`export_student`.
        facts: What the record tells besides, e.g. machine and commit.
        force: Whether files that exist are replaced.
        fp16: Whether to write half-precision numbers, in half the space; a model of
            single precision loads them as they are.
        metrics: JSON file of an evaluation, as ``tools/test.py`` writes it.

    Raises:
        InputError: If a file is missing, is no checkpoint or holds no config, the name
            does not do, a number is too large for half precision, or something is in
            the way.
    """
    if not re.fullmatch(r'[\w.-]+', name):
        raise InputError(
            f'name {name!r} is to be that of files: letters, digits, "-", "_" and "."'
        )
    if log is not None and not Path(log).is_file():
        raise InputError(f'log {log}: no such file')
    scores = None if metrics is None else _read_metrics(metrics)
    check_checkpoint(checkpoint, 'checkpoint')
    try:
        content = load_checkpoint(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from error
    state, averaged = choose_weights(content, checkpoint, ema)
    meta = content.get('meta') or {}
    # of what was published before, that of its training
    cfg = config_of_checkpoint(meta.get(TRAINING_CFG, meta.get('cfg')), checkpoint)
    for setting in _OF_A_RUN:
        cfg.pop(setting, None)
    text = cfg.pretty_text
    weights = {
        key: value.detach().clone()
        for key, value in state.items()
        if not key.startswith(DISTILLER)
    }
    if fp16:
        weights = {key: _half(key, value) for key, value in weights.items()}
    kept = {key: meta[key] for key in META if key in meta}
    kept.update(cfg=_config_to_predict(cfg), lfi_mmdet_version=__version__)
    kept[TRAINING_CFG] = text

    folder = Path(folder)
    aside = folder / f'.{name}.{os.getpid()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(dict(meta=kept, state_dict=weights), aside)
        digest = file_digest(aside)
        size = aside.stat().st_size
        told = Published(
            weights=folder / f'{name}-{digest[:8]}.pth',
            config=folder / f'{name}.py',
            log=None if log is None else folder / f'{name}.log.json',
            record=folder / f'{name}.json',
            sha256=digest,
            size=size,
            averaged=averaged,
        )
        _check_free(told, folder, name, force)
        record = dict(
            name=name, file=told.weights.name, sha256=digest, bytes=size,
            precision='float16' if _is_half(weights) else 'as trained',
            averaged=averaged, iter=meta.get('iter'), epoch=meta.get('epoch'),
            **(dict(metrics=scores) if scores else {}), **(facts or {}),
        )  # fmt: skip
        told.config.write_text(text)
        told.record.write_text(json.dumps(record, indent=2) + '\n')
        if log is not None and told.log is not None:
            shutil.copyfile(log, told.log)
        os.replace(aside, told.weights)
    except (OSError, RuntimeError) as error:
        raise InputError(f'{folder} cannot be written to: {error}') from error
    finally:
        if folder.is_dir():
            aside.unlink(missing_ok=True)
    return told


def _config_to_predict(cfg: Config) -> str:
    """A config that needs no file besides the weights."""
    cfg = copy.deepcopy(cfg)
    without_teacher(cfg)
    forget_weights(cfg.model, ('init_cfg', 'text_embeddings'))
    return cfg.pretty_text


def _read_metrics(path: str | Path) -> dict[str, float]:
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'metrics {path} cannot be read: {error}') from error
    numbers = {
        key: value
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, (int, float)) and '/' in key
    }
    if not numbers:
        raise InputError(
            f'metrics {path}: no entry such as "coco/bbox_mAP" in it; tools/test.py '
            'writes such a file below its --work-dir'
        )
    return numbers


def _is_half(weights: dict[str, Tensor]) -> bool:
    numbers = [value for value in weights.values() if value.is_floating_point()]
    return all(value.dtype == torch.float16 for value in numbers)


def _half(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    if not torch.isfinite(half).all():
        raise InputError(
            f'{name} has numbers that are no finite ones in half precision; leave '
            '--fp16 out'
        )
    return half


def _check_free(told: Published, folder: Path, name: str, force: bool) -> None:
    """Nothing is in the way, and no older weights of the same name stay."""
    ours = [told.config, told.record, *([told.log] if told.log else [])]
    older = sorted(folder.glob(f'{name}-' + '[0-9a-f]' * 8 + '.pth'))
    there = [path for path in (*ours, *older) if path.exists()]
    if there and not force:
        raise InputError(
            f'{", ".join(map(str, there))} exist; choose another name or folder, or '
            '--force to replace them'
        )
    for path in older:
        path.unlink()
