"""Check that the images of a dataset are there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable

from .annotations import some
from .errors import InputError

# Asking a network file system for the size of more files takes minutes
_SIZES_LIMIT = 10_000


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return the paths that do not exist, by one listing per folder."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        by_folder[folder].append(name)
    missing = []
    for folder, names in by_folder.items():
        try:
            with os.scandir(folder or '.') as entries:
                found = {entry.name for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            found = set()
        missing += [os.path.join(folder, name) for name in names if name not in found]
    return missing


def check_folder(folder: str, key: str) -> None:
    """Check that the folder, which the config gives as ``key``, exists.

    Raises:
        InputError: If it does not.
    """
    if not os.path.isdir(folder or '.'):
        where = '' if os.path.isabs(folder) else f' in {os.getcwd()}'
        raise InputError(f'{key}: no folder {folder}{where}')


def check_images(paths: list[str], key: str, source: str) -> None:
    """Check that all images of a dataset exist.

    Args:
        paths: Local files.
        key: Where the config says in which folder they are, for messages.
        source: What lists them: the annotation file.

    Raises:
        InputError: If any is missing, or, unless they are many, empty.
    """
    missing = missing_files(paths)
    if missing:
        raise InputError(
            f'{key}: {len(missing)} of {len(paths)} images of {source} are missing: '
            f'{some(missing, 3)}'
        )
    if len(paths) > _SIZES_LIMIT:
        return
    empty = [path for path in paths if not os.path.getsize(path)]
    if empty:
        raise InputError(
            f'{key}: {len(empty)} of {len(paths)} images of {source} are empty '
            f'(0 bytes): {some(empty, 3)}'
        )
