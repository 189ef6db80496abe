"""Targets like those of a teacher, for tests of the store."""

from __future__ import annotations

import numpy as np

from lfi_mmdet.datasets.target_store import StoredTargets, StoreMeta


def attention_maps(*shape: int, sharpness: float = 1.5, seed: int = 0) -> np.ndarray:
    """Heavy-tailed distributions over the last two axes, float32."""
    logits = np.random.default_rng(seed).standard_normal(shape) * sharpness
    maps = np.exp(logits - logits.max((-2, -1), keepdims=True))
    return (maps / maps.sum((-2, -1), keepdims=True)).astype(np.float32)


def make_record(
    seed: int = 0, texts: tuple[int, ...] = (2, 0), **kwargs
) -> StoredTargets:
    """Two layers on a grid of 4 x 6, with relations.

    Args:
        seed: Another seed, another record.
        texts: Ids of the texts.
        **kwargs: Other fields of the record.
    """
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((2, len(texts), 5)) + 1
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    fields = dict(
        maps=attention_maps(2, len(texts), 4, 6, seed=seed),
        texts=np.array(texts, np.int64),
        present=random.random(len(texts)) < 0.7,
        relations=(unit @ unit.swapaxes(1, 2)).astype(np.float32),
    )
    return StoredTargets(**{**fields, **kwargs})


def make_meta(**kwargs) -> StoreMeta:
    """What a store of :func:`make_record` says about itself."""
    fields = dict(
        teacher=dict(type='CLIPTeacher', model='ViT-B-16', template='a {}.'),
        weights='a' * 64,
        classes=['cat', 'dog', 'bird'],
        num_texts=3,
        view=[dict(size=[224, 224], mean=[0.5] * 3, std=[0.5] * 3)],
        layers=['10', '11'],
        grid=[4, 6],
        dtype='uint8',
        texts='present',
        features=False,
        relations=True,
        dataset=dict(ann_file='train.json', sha256='d' * 64, num_images=10),
        num_images=10,
    )
    return StoreMeta(**{**fields, **kwargs})
