"""A dataset as it lies on the disk: every image once, nothing left to chance."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator
from typing import Any

from mmdet.registry import DATASETS
from mmengine import fileio
from mmengine.config import Config

from lfi_mmdet.engine.digest import file_digest
from lfi_mmdet.engine.preflight import InputError, is_local, iter_datasets

#: What the teachers may ask of a data sample
META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'captions')


def unaugmented_dataset(cfg: Config, split: str) -> Any:
    """Build the dataset of a split without any augmentation.

    Its pipelines load the image, the annotations (with masks, if the config trains or
    tests with them) and, where the config does, the captions, and change nothing.
    Images without annotations are included; wrappers that repeat, sample or mix images
    are left out.

    Args:
        cfg: Config of a detector.
        split: ``'train'`` or ``'val'``.

    Raises:
        InputError: If the config has no such dataset, or it loads no images.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise InputError(f'{cfg.filename} has no {split}_dataloader')
    key = f'{split}_dataloader.dataset'
    masks = _loads_masks(cfg)
    leaves = []
    for inner, dataset in iter_datasets(copy.deepcopy(loader['dataset']), key):
        dataset['pipeline'] = _pipeline(dataset.get('pipeline') or [], masks, inner)
        dataset['test_mode'] = True  # otherwise images without annotations are dropped
        leaves.append(dataset)
    if len(leaves) == 1:
        return DATASETS.build(leaves[0])
    return DATASETS.build(dict(type='ConcatDataset', datasets=leaves))


def image_ids(dataset: Any) -> list[int | str]:
    """Ids of all images of a dataset, in its order.

    Raises:
        InputError: If images have no id, or two have the same.
    """
    ids = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if info.get('img_id') is None:
            raise InputError(
                f'{type(dataset).__name__} gives its images no img_id, by which their '
                f'targets could be found again ({info.get("img_path")})'
            )
        ids.append(info['img_id'])
    if len(set(ids)) != len(ids):
        seen: set = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise InputError(
            f'two images have the id {twice!r}; cache each dataset of a ConcatDataset '
            'on its own'
        )
    return ids


def describe_dataset(dataset: Any) -> dict[str, Any]:
    """Which annotations a dataset is made of.

    Returns:
        ``ann_file``: names of the files; ``sha256``: of their contents;
        ``num_images``. For several datasets, names and hashes are joined by commas.
    """
    names, hashes = [], []
    for _, part in iter_datasets(dataset, 'dataset'):
        path = getattr(part, 'ann_file', None)
        if path:
            names.append(os.path.basename(path))
            hashes.append(_sha256(path, getattr(part, 'backend_args', None)))
    return dict(
        ann_file=','.join(names), sha256=','.join(hashes), num_images=len(dataset)
    )


def _sha256(path: str, backend_args: dict | None) -> str:
    if not is_local(path, backend_args):
        return hashlib.sha256(fileio.get(path, backend_args)).hexdigest()
    return file_digest(path)


def _type_name(transform: dict) -> str:
    found = transform.get('type')
    name = found if isinstance(found, str) else getattr(found, '__name__', '')
    return name.rsplit('.', 1)[-1]


def _iter_steps(steps: Any) -> Iterator[dict]:
    """The transforms of a pipeline, also those inside of others."""
    for step in steps or ():
        if isinstance(step, dict):
            yield step
            yield from _iter_steps(step.get('transforms'))
        elif isinstance(step, list | tuple):
            yield from _iter_steps(step)


def _loads_masks(cfg: Config) -> bool:
    return any(
        _type_name(step) == 'LoadAnnotations' and step.get('with_mask', False)
        for split in ('train', 'val')
        if cfg.get(f'{split}_dataloader')
        for _, leaf in iter_datasets(cfg[f'{split}_dataloader']['dataset'], split)
        for step in _iter_steps(leaf.get('pipeline'))
    )


def _pipeline(given: list, masks: bool, key: str) -> list[dict]:
    """What loads things in a pipeline, and nothing else."""
    steps = list(_iter_steps(given))
    images = [step for step in steps if _type_name(step).startswith('LoadImage')]
    if not images:
        raise InputError(
            f'{key}.pipeline loads no image; it has {[_type_name(s) for s in steps]}'
        )
    captions = [step for step in steps if _type_name(step) == 'LoadCaptions']
    return [
        dict(images[0]),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        *map(dict, captions[:1]),
        dict(type='PackDetInputs', meta_keys=META_KEYS),
    ]
