"""Run a teacher once over a dataset and keep its targets."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from torch.multiprocessing import get_context, spawn
from torch.multiprocessing.spawn import ProcessExitedException
from tqdm import tqdm

from lfi_mmdet.datasets.target_store import (
    StoreMeta,
    TargetStoreError,
    TargetStoreReader,
    TargetStoreWriter,
    prepare_store,
)
from lfi_mmdet.datasets.target_store.selection import TextChoice, read_records
from lfi_mmdet.datasets.target_store.shards import hold, list_shards
from lfi_mmdet.datasets.unaugmented import image_ids

from .caching_options import CachingOptions
from .caching_source import Source, describe
from .plain_errors import explain
from .preflight import InputError, check_config

#: Images of COCO train2017
COCO_TRAIN = 118_287
#: Seconds between two looks at what the processes have done
_POLL = 0.2


def cache_targets(cfg: Config, options: CachingOptions) -> StoreMeta:
    """Store the targets of all images of a split that are not stored yet.

    Args:
        cfg: Config of a detector with a teacher.
        options: What to store, and how.

    Returns:
        What the finished store says about itself.

    Raises:
        InputError: If something the user gave cannot be used, the folder holds other
            targets, the disk is full or a process died. What is stored remains, and
            the next call goes on from there.
    """
    options.check()
    check_config(cfg, [options.split])
    source = Source.build(cfg, options.split, options.device_of(0))
    source.check(options.split)
    ids = image_ids(source.dataset)
    if not ids:
        raise InputError(f'{options.split}_dataloader.dataset has no images')
    meta = describe(source, options)
    folder = Path(options.out)
    with _only_process(folder):
        found = prepare_store(folder, meta)
        stored = set()
        if list_shards(folder):
            with TargetStoreReader(folder, allow_incomplete=True) as reader:
                stored = set(reader.keys())
        wanted = ids[: options.max_images]
        pending = [i for i, img_id in enumerate(wanted) if img_id not in stored]
        total = len(stored | set(wanted))
        if found.complete and not pending:
            return found
        meta = replace(found, complete=False, num_images=total, shards=None)
        _write(meta, folder)
        with tqdm(total=total, initial=total - len(pending), unit='img') as bar:
            if options.processes == 1:
                cache_share(source, meta, options, 0, pending, bar.update)
            else:
                del source
                gc.collect()
                _cache_in_processes(cfg, meta, options, pending, bar.update)
        return _finish(meta, folder)


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'--out {folder}: {error.strerror}') from error
    lock = hold(folder, str(folder))
    try:
        yield
    finally:
        os.close(lock)


def cache_share(
    source: Source,
    meta: StoreMeta,
    options: CachingOptions,
    rank: int,
    indices: Sequence[int],
    advance: Callable[[int], Any],
) -> None:
    """Store some of the images.

    Args:
        source: Teacher and dataset.
        meta: What the store says.
        options: See :class:`CachingOptions`.
        rank: Number of this process.
        indices: Of the images in the dataset.
        advance: Called with the number of images that were added.
    """
    choice = TextChoice.parse(options.texts)
    with TargetStoreWriter(options.out, meta, rank) as writer:
        start = time.perf_counter()
        for batch in source.batches(indices, options):
            records = read_records(
                source.teacher, batch, source.preprocessor, choice, options.features
            )
            seconds = (time.perf_counter() - start) / len(records)
            for sample, record in zip(batch['data_samples'], records):
                writer.put(sample.img_id, record, seconds)
            advance(len(records))
            start = time.perf_counter()


def _cache_in_processes(
    cfg: Config,
    meta: StoreMeta,
    options: CachingOptions,
    pending: Sequence[int],
    advance: Callable[[int], Any],
) -> None:
    """Share the images among processes and wait for them."""
    context = get_context('spawn')
    # one number per process, so that one that is killed leaves no lock behind
    counts = context.RawArray('q', options.processes)
    messages = context.SimpleQueue()
    shares = [pending[rank :: options.processes] for rank in range(options.processes)]
    running = spawn(
        _process,
        args=(cfg, meta, options, shares, counts, messages),
        nprocs=options.processes,
        join=False,
    )
    seen = 0
    try:
        while not running.join(timeout=_POLL):
            if sum(counts) > seen:
                advance(sum(counts) - seen)
                seen = sum(counts)
    except ProcessExitedException as error:
        if not messages.empty():
            raise InputError(messages.get()) from None
        cause = error.signal_name or f'exit code {error.exit_code}'
        with TargetStoreReader(options.out, allow_incomplete=True) as reader:
            stored = len(reader)
        raise InputError(
            f'process {error.error_index} of {options.processes} died ({cause}'
            f'{"; out of memory?" if cause == "SIGKILL" else ""}). {stored} of '
            f'{meta.num_images} images are stored; run the same command again to go on '
            'from there'
        ) from None
    advance(sum(counts) - seen)


def _process(
    rank: int,
    cfg: Config,
    meta: StoreMeta,
    options: CachingOptions,
    shares: list[list[int]],
    counts: Any,
    messages: Any,
) -> None:
    """What each process does."""

    def advance(count: int) -> None:
        counts[rank] += count

    try:
        imports = cfg.get('custom_imports') or {}
        import_modules_from_strings(**imports)
        device = options.device_of(rank)
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
        with redirect_stdout(StringIO()):  # what pycocotools says once is enough
            source = Source.build(cfg, options.split, device)
        cache_share(source, meta, options, rank, shares[rank], advance)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        messages.put(f'{message} (said by process {rank})')
        sys.exit(1)


def _finish(meta: StoreMeta, folder: Path) -> StoreMeta:
    """Count, measure and mark as complete."""
    with TargetStoreReader(folder, allow_incomplete=True) as reader:
        count, size, stats = len(reader), reader.num_bytes, reader.stats()
        shards = reader.shard_sizes()
    if count != meta.num_images:
        raise TargetStoreError(
            f'{folder} has {count} images, but {meta.num_images} were to be stored; '
            'were shards deleted meanwhile? Run the same command again'
        )
    maps = sum(one['maps'] for one in stats)
    images = sum(one['images'] for one in stats)
    report = dict(
        bytes=size,
        mb_per_1000_images=size / count / 1e3,
        coco_train2017_gb=size / count * COCO_TRAIN / 1e9,
        tv_mean=sum(one['tv_sum'] for one in stats) / maps if maps else 0.0,
        tv_max=max(one['tv_max'] for one in stats),
        texts_per_image=maps / images / meta.num_layers,
        seconds_per_image=sum(one['seconds'] for one in stats) / images,
    )
    rounded = {name: float(f'{value:.4g}') for name, value in report.items()}
    rounded['bytes'] = size
    meta = replace(meta, complete=True, shards=shards, report=rounded)
    _write(meta, folder)
    return meta


def _write(meta: StoreMeta, folder: Path) -> None:
    try:
        meta.write(folder)
    except OSError as error:
        raise TargetStoreError(
            f'{folder} cannot be written to: {error.strerror}. Make room and run the '
            'same command again, which goes on from what is stored'
        ) from error


def report_text(meta: StoreMeta, folder: str) -> str:
    """What to tell the user about a finished store."""
    report = meta.report or {}
    grid = 'x'.join(map(str, meta.grid or ()))
    return (
        f'{folder}: {meta.num_images} images, {report["texts_per_image"]:.3g} texts '
        f'per image, {meta.num_layers} layers, {grid} cells, {meta.dtype}\n'
        f'size:  {report["mb_per_1000_images"]:.4g} MB per 1,000 images; COCO '
        f'train2017 ({COCO_TRAIN:,} images) would take '
        f'{report["coco_train2017_gb"]:.3g} GB\n'
        f'error: total variation of a map {report["tv_mean"]:.2e} on average, '
        f'{report["tv_max"]:.2e} at most\n'
        f'time:  {report["seconds_per_image"]:.3g} s per image and process'
    )
