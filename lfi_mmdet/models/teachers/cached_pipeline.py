"""Whether a dataset's pipelines hand on the targets of what they show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from lfi_mmdet.datasets.target_store.meta import StoreMeta, differences
from lfi_mmdet.datasets.transforms.geometry import check_geometry
from lfi_mmdet.datasets.transforms.load_cached_targets import LoadCachedTargets
from lfi_mmdet.datasets.transforms.pack_interaction_inputs import PackInteractionInputs
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.engine.preflight.annotations import some

_KEY = 'train_dataloader.dataset'
_SHOWN = 3


def check_pipelines(
    dataset: Any, store: str, key: str = _KEY
) -> dict[str, frozenset[str]]:
    """Check every pipeline of a dataset with cached targets.

    Args:
        dataset: Built dataset, possibly wrapped.
        store: Folder of the store that the teacher names.
        key: Where the dataset stands in the config, for messages.

    Returns:
        By the token of each :class:`LoadCachedTargets`, what the transforms in front
        of it may do; see :func:`check_geometry`.

    Raises:
        InputError: See :meth:`CachedTeacher.check_dataset`.
    """
    checked = {}
    for inner, part in _leaves(dataset, key):
        loader, what = _check_pipeline(part, f'{inner}.pipeline', store)
        _check_images(part, loader, inner)
        checked[loader.token] = what
    return checked


def _leaves(dataset: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Datasets inside of wrappers; refuses wrappers that change images."""
    own = vars(dataset)
    parts = [
        (f'{key}.datasets.{i}', part)
        for i, part in enumerate(own.get('datasets') or ())
    ]
    if own.get('dataset') is not None:
        parts.append((f'{key}.dataset', own['dataset']))
    if not parts:
        yield key, dataset
        return
    if own.get('pipeline'):
        raise InputError(
            f'{key}: {type(dataset).__name__} changes images after their targets are '
            'read (it has a pipeline of its own); cached targets would drift from the '
            'image. Train with the teacher itself instead of CachedTeacher, or without '
            'this wrapper'
        )
    for inner, part in parts:
        yield from _leaves(part, inner)


def _check_pipeline(
    dataset: Any, key: str, store: str
) -> tuple[LoadCachedTargets, frozenset[str]]:
    """Check transforms and their order, and the store."""
    steps = list(_steps(getattr(dataset, 'pipeline', None)))
    places = [i for i, step in enumerate(steps) if isinstance(step, LoadCachedTargets)]
    if len(places) != 1:
        raise InputError(
            f'{key} has {len(places) or "no"} LoadCachedTargets; CachedTeacher needs '
            'one: put '
            f"dict(type='LoadCachedTargets', store={store!r}), "
            "dict(type='PackInteractionInputs') in the place of PackDetInputs"
        )
    place, loader = places[0], steps[places[0]]
    if os.path.realpath(loader.store) != os.path.realpath(store):
        raise InputError(
            f'{key}.{place}: LoadCachedTargets.store={loader.store!r}, but '
            f'model.teacher.store={store!r}; both have to be the same'
        )
    before, behind = steps[:place], steps[place + 1 :]
    what = check_geometry(before, loader.allowed, key)
    check_geometry(behind, loader.allowed, key, still=True, first=place + 1)
    packs = {PackInteractionInputs.__name__, *loader.allowed}
    if not any(type(step).__name__ in packs for step in behind):
        raise InputError(
            f'{key}: nothing packs the targets; write '
            "dict(type='PackInteractionInputs') in the place of PackDetInputs, which "
            'would drop them'
        )
    return loader, what


def _steps(pipeline: Any) -> Iterator[Any]:
    """Transforms in their order, also in the only branch of a ``MultiBranch``."""
    for step in getattr(pipeline, 'transforms', ()):
        branches = list(getattr(step, 'branch_pipelines', {}).values())
        if len(branches) == 1:
            yield from _steps(branches[0])
        else:
            yield step


def _check_images(dataset: Any, loader: LoadCachedTargets, key: str) -> None:
    """Check that the store is of this dataset."""
    reader = loader.open()
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    here = StoreMeta(classes=None if classes is None else list(classes))
    reasons = differences(reader.meta, here)
    if reasons:
        raise InputError(
            f'{key}.metainfo.classes are not those of {loader.store}: '
            f'{"; ".join(reasons)}'
        )
    ids = [dataset.get_data_info(i).get('img_id') for i in range(len(dataset))]
    known = set(reader.keys())
    lost = [img_id for img_id in ids if img_id not in known]
    if lost:
        source = (reader.meta.dataset or {}).get('ann_file') or 'another dataset'
        raise InputError(
            f'{key}: {loader.store} has no targets of {len(lost)} of the {len(ids)} '
            f'images (ids {some(lost, _SHOWN)}); it was made from {source}, so cache '
            'this dataset, or train on that one'
        )
