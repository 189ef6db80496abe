"""What to cache, and how."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from mmengine.config import Config

from lfi_mmdet.datasets.target_store import DTYPES
from lfi_mmdet.datasets.target_store.selection import TextChoice

from .preflight import InputError

SPLITS = ('train', 'val')


@dataclass(frozen=True)
class CachingOptions:
    """What to store, and how.

    Args:
        out: Folder of the store.
        split: ``'train'`` or ``'val'``: whose dataset is taken.
        processes: Processes; on CUDA each takes a device of its own.
        device: ``'cuda'`` or ``'cpu'``.
        batch_size: Images per batch of each process.
        workers: Data loader workers of each process.
        dtype: Format of the maps.
        texts: Which texts are kept, see :class:`TextChoice`.
        features: Whether to keep features in place of their cosines.
        max_images: Only the first images; None for all.
    """

    out: str
    split: str = 'train'
    processes: int = 1
    device: str = 'cpu'
    batch_size: int = 8
    workers: int = 0
    dtype: str = 'uint8'
    texts: str = 'present'
    features: bool = False
    max_images: int | None = None

    def check(self) -> None:
        """Check the options.

        Raises:
            InputError: If one is out of range.
        """
        TextChoice.parse(self.texts)
        for name, choices in (('split', SPLITS), ('dtype', DTYPES)):
            if getattr(self, name) not in choices:
                raise InputError(
                    f'--{name} {getattr(self, name)}: choose from {choices}'
                )
        for name in ('processes', 'batch_size', 'max_images'):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace('_', '-')
                raise InputError(f'--{flag} {value}: it has to be at least 1')
        if self.workers < 0:
            raise InputError(f'--workers {self.workers}: it has to be at least 0')
        kind = torch.device(self.device).type
        if kind == 'cuda' and not torch.cuda.is_available():
            raise InputError(f'--device {self.device}: no CUDA device is available')
        if kind == 'cuda' and self.processes > torch.cuda.device_count():
            raise InputError(
                f'--processes {self.processes}: there are '
                f'{torch.cuda.device_count()} CUDA devices, and each process takes one'
            )

    def device_of(self, rank: int) -> torch.device:
        """The device of a process."""
        if self.processes > 1 and torch.device(self.device).type == 'cuda':
            return torch.device('cuda', rank)
        return torch.device(self.device)


def default_folder(cfg: Config, split: str) -> str:
    """The store that a ``CachedTeacher`` reads, or a folder named after the config.

    Args:
        cfg: Config of a detector.
        split: Whose dataset is taken.
    """
    teacher = (cfg.get('model') or {}).get('teacher') or {}
    if split == 'train' and isinstance(teacher, dict) and teacher.get('store'):
        return teacher['store']
    stem = os.path.splitext(os.path.basename(cfg.filename or 'config'))[0]
    return os.path.join('work_dirs', stem, f'targets_{split}')
