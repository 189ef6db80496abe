"""Writes the weights that all arms of a seed start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed

from lfi_mmdet.evaluation.initialise import initialise_quietly

from .hashes import value_digest


def student_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Config of a detector without what helps it to learn."""
    return {k: v for k, v in model.items() if k not in ('teacher', 'distiller')}


def write_start(model: Mapping[str, Any], seed: int, folder: Path) -> Path:
    """Initialise the twin's model under a seed and store it, unless that was done.

    Args:
        model: Config of the twin's model; a teacher and a distiller are left out.
        seed: Seed of the run.
        folder: For the file, which is named after config and seed.

    Returns:
        The checkpoint.
    """
    student = student_config(model)
    path = folder / f'{value_digest(student)[:12]}-seed{seed}.pth'
    if path.is_file():
        return path
    init_default_scope('mmdet')
    set_random_seed(seed)
    built = MODELS.build(ConfigDict(student))
    initialise_quietly(built)
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}')
    torch.save(dict(state_dict=built.state_dict(), meta=dict(seed=seed)), aside)
    os.replace(aside, path)
    return path
