"""Stores of targets for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lfi_mmdet.datasets.target_store import (
    StoredTargets,
    StoreMeta,
    TargetStoreReader,
    TargetStoreWriter,
)

CLASSES = ('red', 'green', 'blue')


def some_record(
    texts: tuple[int, ...] = (0, 1),
    layers: int = 2,
    grid: tuple[int, int] = (4, 6),
    channels: int | None = None,
    seed: int = 0,
) -> StoredTargets:
    """Random targets of one image, with relations or, if given channels, features."""
    random = np.random.default_rng(seed)
    maps = random.random((layers, len(texts), *grid)).astype(np.float32) ** 2
    vectors = random.standard_normal((layers, len(texts), channels or 5))
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return StoredTargets(
        maps=maps / maps.sum((-2, -1), keepdims=True),
        texts=np.array(texts, np.int64),
        present=np.ones(len(texts), bool),
        relations=None if channels else (unit @ unit.swapaxes(1, 2)).astype('f4'),
        features=vectors.astype('f4') if channels else None,
    )


def write_store(
    folder: Path, records: Mapping[Any, StoredTargets], **changes: Any
) -> str:
    """Write a complete store.

    Args:
        folder: Where to.
        records: Targets by image id.
        **changes: Fields of :class:`StoreMeta` that differ from those that fit records
            of classes.
    """
    first = next(iter(records.values()))
    features = first.features
    fields = dict(
        teacher=dict(type='GroundTruthTeacher'),
        weights='0123456789abcdef' * 4,
        classes=list(CLASSES),
        num_texts=len(CLASSES),
        layers=[str(i) for i in range(len(first.maps))],
        grid=list(first.maps.shape[-2:]),
        feature_dims=None if features is None else features.shape[-1],
        dtype='float16',
        texts='present',
        features=features is not None,
        relations=first.relations is not None,
        dataset=dict(ann_file='train.json', sha256='0' * 64, num_images=len(records)),
        num_images=len(records),
    )
    meta = StoreMeta(**{**fields, **changes})
    with TargetStoreWriter(folder, meta) as writer:
        for img_id, record in records.items():
            writer.put(img_id, record)
    reader = TargetStoreReader(folder, allow_incomplete=True)
    meta.shards = {s.path.name: len(s) for s in reader._opened()}
    meta.complete = True
    meta.write(folder)
    return str(folder)
