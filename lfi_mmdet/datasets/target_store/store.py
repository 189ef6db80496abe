"""Write and read a folder of stored targets."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from .codec import decode, encode, total_variation
from .errors import MissingTargetsError, TargetStoreError
from .meta import META_FILE, StoreMeta, differences
from .record import StoredTargets
from .shards import (
    SHARD_NAME,
    STATS_KEY,
    Shard,
    hold,
    image_key,
    list_shards,
    open_shard,
)

#: Images per transaction; a kill loses at most so many
COMMIT_EVERY = 32
#: Bytes that a new shard may grow to before its map is doubled
MAP_SIZE = 2**26


def prepare_store(folder: str | Path, meta: StoreMeta) -> StoreMeta:
    """Make a store, or check that one may be continued.

    Args:
        folder: Its folder; made if it is missing.
        meta: What it is to hold.

    Returns:
        What ``store.json`` says now.

    Raises:
        TargetStoreError: If the folder holds another store, with the reasons, or the
            disk is full.
    """
    folder = Path(folder)
    if (folder / META_FILE).exists():
        found = StoreMeta.read(folder)
        reasons = differences(found, meta)
        if reasons:
            raise TargetStoreError(
                f'{folder} holds targets that are not those wanted: '
                f'{"; ".join(reasons)}. Choose another folder (--out), or delete this '
                'one'
            )
        return found
    shards = list_shards(folder)
    if shards:
        raise TargetStoreError(
            f'{folder} has {len(shards)} shards, but no {META_FILE} that says what '
            'they are; choose another folder, or delete this one'
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        meta.write(folder)
    except OSError as error:
        raise TargetStoreError(
            f'{folder} cannot be made or written to: {error.strerror}'
        ) from error
    return meta


class TargetStoreWriter:
    """Adds images to a store, in a shard of its own.

    Images are committed in transactions of :data:`COMMIT_EVERY`. A process that is
    killed loses what is not committed and damages nothing; what is there stays, and
    the next writer starts another shard.

    Args:
        folder: Folder of the store.
        meta: What it is to hold; its ``dtype`` is the format of the maps.
        rank: Number of this process among those that write at the same time.
        commit_every: Images per transaction.
        map_size: Bytes of the shard's memory map at the start; it grows as needed.

    Raises:
        TargetStoreError: See :func:`prepare_store`.
    """

    def __init__(
        self,
        folder: str | Path,
        meta: StoreMeta,
        rank: int = 0,
        commit_every: int = COMMIT_EVERY,
        map_size: int = MAP_SIZE,
    ) -> None:
        assert meta.dtype is not None, 'a store has a format'
        prepare_store(folder, meta)
        self.folder, self.rank, self.dtype = Path(folder), rank, meta.dtype
        self.commit_every, self._map_size = commit_every, map_size
        self._pending: dict[bytes, bytes] = {}
        self._env: lmdb.Environment | None = None
        self._lock: int | None = None
        self._stats = dict(images=0, maps=0, tv_sum=0.0, tv_max=0.0, seconds=0.0)
        #: Images that are safely on the disk
        self.committed = 0

    def put(self, img_id: Any, targets: StoredTargets, seconds: float = 0.0) -> None:
        """Add an image.

        Args:
            img_id: An integer or a text.
            targets: Its targets.
            seconds: What they took to compute, for the report.

        Raises:
            TargetStoreError: If the targets are not in order, with the image, or the
                disk is full.
        """
        try:
            data = encode(targets, self.dtype)
        except ValueError as error:
            raise TargetStoreError(f'targets of image {img_id!r}: {error}') from error
        if targets.maps.size:
            errors = total_variation(targets.maps, decode(data).maps)
            self._stats['maps'] += errors.size
            self._stats['tv_sum'] += float(errors.sum())
            self._stats['tv_max'] = max(self._stats['tv_max'], float(errors.max()))
        self._stats['images'] += 1
        self._stats['seconds'] += seconds
        self._pending[image_key(img_id)] = data
        if len(self._pending) >= self.commit_every:
            self.flush()

    def flush(self) -> None:
        """Commit what is pending.

        Raises:
            TargetStoreError: If the disk is full, or something else is in the way.
        """
        if not self._pending:
            return
        try:
            if self._env is None:
                self._env = self._start_shard()
            self._commit(self._env)
        except (lmdb.Error, OSError) as error:
            self._pending.clear()  # the data cannot be written on closing either
            self._close_files()
            raise TargetStoreError(self._explain(error)) from error
        self.committed += len(self._pending)
        self._pending.clear()

    def _start_shard(self) -> lmdb.Environment:
        number = self.rank
        while True:
            path = self.folder / SHARD_NAME.format(number)
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
                break
            except FileExistsError:
                number += 1
        self._lock = hold(path, f'{path}')
        return lmdb.open(
            str(path), subdir=False, map_size=self._map_size, lock=False, mode=0o644
        )

    def _commit(self, env: lmdb.Environment) -> None:
        stats = json.dumps(self._stats).encode()
        while True:
            try:
                with env.begin(write=True) as transaction:
                    for key, data in self._pending.items():
                        transaction.put(key, data)
                    transaction.put(STATS_KEY, stats)
                break
            except lmdb.MapFullError:
                env.set_mapsize(2 * env.info()['map_size'])
        # pages at the end may be counted, but never written, as they are free;
        # without them the file would look cut off
        needed = (env.info()['last_pgno'] + 1) * env.stat()['psize']
        if os.path.getsize(env.path()) < needed:
            os.truncate(env.path(), needed)

    def _explain(self, error: Exception) -> str:
        try:
            free = f'{shutil.disk_usage(self.folder).free / 1e9:.3g} GB'
        except OSError:
            free = 'an unknown number of bytes'
        return (
            f'{self.folder} cannot be written to: {error}. The disk may be full '
            f'({free} are free) or a quota reached. What was committed before is safe: '
            'make room and run the same command again, which goes on from there'
        )

    def close(self) -> None:
        """Commit what is pending and close the shard."""
        try:
            self.flush()
        finally:
            self._close_files()

    def _close_files(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> TargetStoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TargetStoreReader:
    """Reads the targets of images from all shards of a store.

    Files are opened when they are first needed, once per process: a reader may be
    shared by forked workers, sent to other processes, and used by any number of them.

    Args:
        folder: Folder of the store.
        allow_incomplete: Whether to read a store that lacks images.

    Attributes:
        meta: What the store says about itself.

    Raises:
        TargetStoreError: If the folder is no store, the store is incomplete, or a
            shard is missing, cut off or still being written.
    """

    def __init__(self, folder: str | Path, allow_incomplete: bool = False) -> None:
        self.folder, self.allow_incomplete = Path(folder), allow_incomplete
        self.meta = StoreMeta.read(folder)
        self._shards: list[Shard] | None = None
        self._check()

    def _check(self) -> None:
        expected, stored = self.meta.num_images, len(self)
        if self.meta.complete:
            for path, shard in zip(self._paths(), self._opened()):
                wanted = (self.meta.shards or {}).get(path.name)
                if wanted != len(shard):
                    raise TargetStoreError(
                        f'{path} has {len(shard)} images, but {META_FILE} says '
                        f'{wanted}; the store was changed after it was made, make it '
                        'anew'
                    )
        elif not self.allow_incomplete:
            of = '' if expected is None else f' of {expected}'
            raise TargetStoreError(
                f'{self.folder} is incomplete: {stored}{of} images; run '
                'tools/cache_teacher.py again to finish it'
            )

    def _paths(self) -> list[Path]:
        if self.meta.complete:
            return [self.folder / name for name in sorted(self.meta.shards or {})]
        # a kill may come before the first bytes of a shard
        return [path for path in list_shards(self.folder) if path.stat().st_size]

    def _opened(self) -> list[Shard]:
        if self._shards is None:
            paths = self._paths()
            if not self.meta.complete:
                for path in paths:  # unlocked at once; nothing is to write any more
                    os.close(hold(path, f'{path}'))
            self._shards = [open_shard(path) for path in paths]
        return self._shards

    def get(self, img_id: Any) -> StoredTargets:
        """Read the targets of an image.

        Raises:
            MissingTargetsError: If the store has none.
            TargetStoreError: If they are damaged.
        """
        key = image_key(img_id)
        for shard in self._opened():
            try:
                data = shard.get(key)
                if data is not None:
                    return decode(data)
            except (TargetStoreError, lmdb.Error) as error:
                raise TargetStoreError(
                    f'image {img_id!r} in {shard.path}: {error}'
                ) from error
        raise MissingTargetsError(
            f'{self.folder} has no targets of image {img_id!r} among its {len(self)}; '
            'it was made for other images'
        )

    def __contains__(self, img_id: Any) -> bool:
        key = image_key(img_id)
        return any(key in shard for shard in self._opened())

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._opened())

    def keys(self) -> Iterator[int | str]:
        """Ids of all images, shard by shard."""
        for shard in self._opened():
            for key in shard.keys():
                yield json.loads(key)

    def stats(self) -> list[dict[str, float]]:
        """What each writer has noted about its images."""
        return [shard.stats() for shard in self._opened()]

    def shard_sizes(self) -> dict[str, int]:
        """Images by name of the file."""
        return {shard.path.name: len(shard) for shard in self._opened()}

    @property
    def num_bytes(self) -> int:
        """Size of all shards on the disk."""
        return sum(shard.path.stat().st_size for shard in self._opened())

    def close(self) -> None:
        """Close the files, unless other readers use them; reading opens them again."""
        self._shards = None

    def __enter__(self) -> TargetStoreReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # a process opens the files itself
        return {**vars(self), '_shards': None}
