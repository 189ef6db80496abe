"""One file of a store: opened once per process, checked, and locked while written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb

from .errors import TargetStoreError

#: Names of the files of a store
SHARD_NAME = 'shard_{:03d}.lmdb'
#: Key of what a shard says about its images; keys of images are JSON and never have it
STATS_KEY = b'\0stats'
#: Seconds to wait for the last processes of a command that has just been killed
PATIENCE = 20.0
#: LMDB's own limit
_LONGEST_KEY = 511


def image_key(img_id: Any) -> bytes:
    """Key of an image; 1 and '1' are two images.

    Raises:
        TargetStoreError: If the id is neither an integer nor a text, or too long.
    """
    if hasattr(img_id, 'item'):  # a number of NumPy or torch
        img_id = img_id.item()
    if isinstance(img_id, bool) or not isinstance(img_id, int | str):
        raise TargetStoreError(
            f'img_id={img_id!r} is a {type(img_id).__name__}; it has to be an integer '
            'or a text'
        )
    key = json.dumps(img_id, ensure_ascii=False).encode()
    if len(key) > _LONGEST_KEY:
        raise TargetStoreError(
            f'img_id={img_id!r} has {len(key)} bytes; {_LONGEST_KEY} can be stored'
        )
    return key


def list_shards(folder: str | Path) -> list[Path]:
    """Files of a store, in the order of their names."""
    return sorted(Path(folder).glob('shard_*.lmdb'))


class Shard:
    """A shard for reading.

    Workers that are forked inherit it and open the file anew when they first read;
    see :func:`open_shard`.

    Args:
        path: The file.

    Raises:
        TargetStoreError: If it is no whole shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._env, self._pid = self._open(), os.getpid()

    def _open(self) -> lmdb.Environment:
        size = os.path.getsize(self.path)
        hint = (
            'delete it and run tools/cache_teacher.py again, which caches its images '
            'anew'
        )
        try:
            # one process writes a shard, and nobody reads it meanwhile: no locks needed
            env = lmdb.open(
                str(self.path), subdir=False, readonly=True, create=False, lock=False
            )
        except lmdb.Error as error:
            raise TargetStoreError(
                f'{self.path} is cut off or no shard ({size} bytes); {hint}'
            ) from error
        # LMDB itself would end the process when it reads behind the end of the file
        needed = (env.info()['last_pgno'] + 1) * env.stat()['psize']
        if size < needed:
            env.close()
            raise TargetStoreError(
                f'{self.path} is cut off: {size} of {needed} bytes are there; {hint}'
            )
        return env

    @property
    def env(self) -> lmdb.Environment:
        """The environment of this process."""
        if self._pid != os.getpid():
            self._env.close()  # that of the parent stays open in the parent
            self._env, self._pid = self._open(), os.getpid()
        return self._env

    def get(self, key: bytes) -> bytes | None:
        """Bytes of an image, or None."""
        with self.env.begin() as transaction:
            return transaction.get(key)

    def __contains__(self, key: bytes) -> bool:
        with self.env.begin(buffers=True) as transaction:
            return transaction.get(key) is not None

    def __len__(self) -> int:
        entries = self.env.stat()['entries']
        return entries - (STATS_KEY in self)

    def keys(self) -> Iterator[bytes]:
        """Keys of the images."""
        with self.env.begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                if key != STATS_KEY:
                    yield key

    def stats(self) -> dict[str, float]:
        """What the writer has noted; empty if it has stored nothing."""
        found = self.get(STATS_KEY)
        return json.loads(found) if found else {}

    def close(self) -> None:
        """Close the file, for all that use it in this process."""
        self._env.close()

    def __del__(self) -> None:
        if '_env' in vars(self):
            self.close()


# a file must not be opened twice in one process
_OPENED: WeakValueDictionary[tuple[int, int], Shard] = WeakValueDictionary()


def open_shard(path: Path) -> Shard:
    """Open a shard for reading, unless this process has done so already.

    Raises:
        TargetStoreError: If it is no whole shard.
    """
    try:
        stat = os.stat(path)
    except FileNotFoundError as error:
        raise TargetStoreError(f'{path} is missing; was it deleted or moved?') from (
            error
        )
    key = (stat.st_dev, stat.st_ino)
    shard = _OPENED.get(key)
    if shard is None:
        shard = _OPENED[key] = Shard(path)
    return shard


def hold(path: Path, what: str, patience: float = PATIENCE) -> int:
    """Lock a file or folder until the process ends or the descriptor is closed.

    Args:
        path: The file or folder.
        what: Of what it is the lock, for the message.
        patience: Seconds to wait for another process.

    Returns:
        The descriptor.

    Raises:
        TargetStoreError: If another process holds the file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                return descriptor  # a file system without locks
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise
        if time.monotonic() >= end:
            os.close(descriptor)
            raise TargetStoreError(
                f'{what} is being written by another process; wait for it to end, or '
                'stop it'
            )
        time.sleep(0.1)
