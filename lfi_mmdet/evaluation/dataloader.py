"""Images with the ground truth transformed along, and nothing left to chance."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

SPLITS = ('val', 'train')


def interaction_dataloader(
    cfg: Config,
    split: str = 'val',
    max_images: int | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Build a dataloader for :func:`read_interactions` from a detector's config.

    The images go through the test pipeline of the config, but annotations are loaded
    before they are transformed: the pipelines of mmdet load them afterwards, in the
    coordinates of the original image. Every image comes once, in the order of the
    annotation file, empty ones included.

    Args:
        cfg: Config of a detector.
        split: ``'val'`` or ``'train'``: whose dataset is taken.
        max_images: Only the first images; None for all.
        batch_size: Images per batch; None for that of ``val_dataloader``.
        num_workers: Processes that load images.

    Raises:
        ValueError: If the split is unknown, or the config has no such dataloader.
    """
    if split not in SPLITS:
        raise ValueError(f'split={split!r} is not known; choose from {SPLITS}')
    for name in ('val_dataloader', f'{split}_dataloader'):
        if not cfg.get(name):
            raise ValueError(f'{cfg.filename} has no {name}')
    if max_images is not None and max_images < 1:
        raise ValueError(f'max_images={max_images} is less than 1')
    pipeline = next(_leaves(cfg.val_dataloader.dataset)).get('pipeline', [])
    pipeline = _annotations_first(pipeline, _loads_masks(cfg))
    # wrappers that repeat, sample or mix images are left out
    leaves = list(_leaves(copy.deepcopy(cfg[f'{split}_dataloader'].dataset)))
    for leaf in leaves:
        leaf['pipeline'] = pipeline
        leaf['test_mode'] = True  # otherwise images without annotations are dropped
    whole = (
        leaves[0] if len(leaves) == 1 else dict(type='ConcatDataset', datasets=leaves)
    )
    dataset = DATASETS.build(whole)
    length = len(dataset) if max_images is None else min(max_images, len(dataset))
    return DataLoader(
        dataset,
        batch_size=batch_size or cfg.val_dataloader.get('batch_size', 1),
        sampler=range(length),
        num_workers=num_workers,
        collate_fn=pseudo_collate,
    )


def _leaves(dataset: dict) -> Iterator[dict]:
    """The datasets proper, inside wrappers such as RepeatDataset or ConcatDataset."""
    if 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from _leaves(inner)
    elif 'dataset' in dataset:
        yield from _leaves(dataset['dataset'])
    else:
        yield dataset


def _type_name(transform: dict) -> str:
    found = transform['type']
    name = found if isinstance(found, str) else found.__name__
    return name.rsplit('.', 1)[-1]


def _loads_masks(cfg: Config) -> bool:
    """Whether the config trains or tests with masks."""
    return any(
        _type_name(transform) == 'LoadAnnotations' and transform.get('with_mask', False)
        for name in ('train_dataloader', 'val_dataloader')
        if cfg.get(name)
        for leaf in _leaves(cfg[name].dataset)
        for transform in leaf.get('pipeline', [])
    )


def _annotations_first(pipeline: list[dict], with_mask: bool) -> list[dict]:
    """Move ``LoadAnnotations`` to the place right after the image is loaded."""
    loading = dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask)
    kept = [dict(t) for t in pipeline if _type_name(t) != 'LoadAnnotations']
    loaders = [i for i, t in enumerate(kept) if _type_name(t).startswith('LoadImage')]
    if not loaders:
        raise ValueError(
            'the pipeline of val_dataloader loads no image; it has '
            f'{[_type_name(t) for t in pipeline]}'
        )
    kept.insert(loaders[-1] + 1, loading)
    return kept
