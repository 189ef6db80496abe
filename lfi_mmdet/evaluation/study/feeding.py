"""Feeds the checkpoints of stages into the trainings that follow them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from lfi_mmdet.engine.preflight import InputError

from .plan import Arm
from .start_weights import student_config


def feed(cfg: Config, arm: Arm, checkpoints: Sequence[str]) -> list[str]:
    """Feed the stages so far into what follows them.

    Returns:
        The checkpoints that weights are read from, which the start weights of the twin
        are not to overwrite. A later one into the same place stands for those before.

    Raises:
        InputError: If what a stage learned would be overwritten.
    """
    fed: dict[str, str] = {}
    for stage, path in zip(arm.stages, checkpoints):
        where = f'arms.{arm.name}.stages.{stage.name}'
        if stage.feeds == 'backbone':
            if 'load_from' in fed:
                raise InputError(
                    f'{where}.feeds: backbone, but the load_from of a stage before is '
                    'read after it and overwrites it; use load_from here, or nothing '
                    'there'
                )
            cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
        elif stage.feeds == 'load_from':
            cfg.load_from = path
        elif path in _initial(cfg):
            raise InputError(
                f'{where}.feeds: nothing, but options start the model from its '
                'checkpoint, which the start weights of the twin would overwrite; use '
                'feeds: backbone or load_from instead of that option'
            )
        if stage.feeds != 'nothing':
            fed[stage.feeds] = path
    return list(fed.values())


def _initial(cfg: Config) -> list[Any]:
    """Checkpoints that options start parts of the model from, the teacher left out."""
    return [cfg.get('load_from'), *_named(student_config(cfg.model))]


def _named(part: Any, inside: bool = False) -> Iterator[Any]:
    """Checkpoints of every ``init_cfg``, however deep it lies."""
    if isinstance(part, Mapping):
        if inside:
            yield part.get('checkpoint')
        for key, value in part.items():
            yield from _named(value, inside or key == 'init_cfg')
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _named(value, inside)
