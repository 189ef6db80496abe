"""Check the files that a config names, before anything is built from it."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.fileio import join_path
from mmengine.runner import find_latest_checkpoint
from mmengine.utils import is_abs

from .annotations import (
    check_classes,
    check_entries,
    check_file,
    check_optional_categories,
    load_coco,
    read_categories,
)
from .errors import InputError
from .images import check_folder, check_images

#: Keys of a model config that name files to start from
_MODEL_FILES = ('checkpoint', 'text_embeddings')


def check_config(cfg: Config, splits: Sequence[str]) -> None:
    """Check the datasets and evaluators that a run is going to use.

    Args:
        cfg: Config of the run.
        splits: Of ``'train'``, ``'val'`` and ``'test'``; those without a loop in the
            config are left out.

    Raises:
        InputError: If a file or folder is missing or broken, or class names do not
            fit the annotations.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None or cfg.get(f'{split}_cfg') is None:
            continue
        key = f'{split}_dataloader.dataset'
        for inner, dataset in iter_datasets(loader['dataset'], key):
            _check_dataset(dataset, inner)
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            path = evaluator.get('ann_file')
            if path and is_local(path, evaluator.get('backend_args')):
                _check_evaluator(path, split, loader['dataset'])


def check_start(cfg: Config) -> None:
    """Check the files that a training starts from.

    Raises:
        InputError: If ``load_from``, the checkpoint to resume, or a file named in the
            model is missing.
    """
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, 'resume' if cfg.get('resume') else 'load_from')
    elif cfg.get('resume'):
        _check_last_checkpoint(cfg.work_dir)
    # a checkpoint to load replaces the start values, but mmengine makes them first
    for key, path in _iter_model_files(cfg.model, 'model'):
        check_checkpoint(path, key)


def check_checkpoint(path: str, key: str) -> None:
    """Check that a checkpoint is a file; addresses such as ``https://`` are left alone.

    Raises:
        InputError: If it is missing or empty.
    """
    if '://' in path:
        return
    if os.path.isdir(path):
        raise InputError(f'{key}={path} is a folder; {_choices(path)}')
    if not os.path.exists(path):
        folder = os.path.dirname(path) or '.'
        raise InputError(f'{key}={path}: no such file; {_choices(folder)}')
    check_file(path, key)


def is_local(path: str, backend_args: dict | None) -> bool:
    """Whether mmengine would read ``path`` from a local file system."""
    backend = (backend_args or {}).get('backend')
    return '://' not in path and backend in (None, 'local', 'LocalBackend')


def lists_plain_coco(dataset_type: Any) -> bool:
    """Whether a dataset class reads COCO files in the way of ``CocoDataset``."""
    return (
        issubclass(dataset_type, CocoDataset)
        and dataset_type.load_data_list is CocoDataset.load_data_list
        and dataset_type.parse_data_info is CocoDataset.parse_data_info
    )


def needs_categories(dataset_type: Any) -> bool:
    """Whether a dataset class reads more of a COCO file than its images."""
    return getattr(dataset_type, 'NEEDS_CATEGORIES', True)


def iter_datasets(dataset: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Find the datasets inside of wrappers (repeat, concatenate, balance, mix).

    Args:
        dataset: A config or a built dataset.
        key: Where it is in the config.

    Yields:
        The key in the config, and the config or dataset.
    """
    get: Any = dataset.get if isinstance(dataset, dict) else vars(dataset).get
    if get('dataset') is not None:
        yield from iter_datasets(get('dataset'), f'{key}.dataset')
    elif get('datasets') is not None:
        for i, part in enumerate(get('datasets')):
            yield from iter_datasets(part, f'{key}.datasets.{i}')
    else:
        yield key, dataset


def _check_dataset(dataset: dict, key: str) -> None:
    dataset_type = _dataset_type(dataset, key)
    ann_file = _local_path(dataset, dataset.get('ann_file') or '')
    if not ann_file:
        return
    if not issubclass(dataset_type, CocoDataset):
        check_file(ann_file, f'{key}.ann_file')
        return
    needed = needs_categories(dataset_type)
    content = load_coco(ann_file, f'{key}.ann_file', needed)
    if not needed:
        if content is not None:
            images = dict(images=content['images'])
            check_entries(images, f'{key}.ann_file', ann_file)
            classes = _classes(dataset, dataset_type, key)
            if classes is not None:
                check_optional_categories(classes, content, key, ann_file)
        _check_image_files(dataset, content, key, ann_file)
    elif lists_plain_coco(dataset_type):
        classes = _classes(dataset, dataset_type, key)
        _check_plain_coco(dataset, content, classes, key, ann_file)


def _check_plain_coco(
    dataset: dict, content: dict | None, classes: Any, key: str, ann_file: str
) -> None:
    """Compare a dataset config with its annotations (None if they are large)."""
    if content is None:
        categories = read_categories(ann_file, f'{key}.ann_file')
    else:
        check_entries(content, f'{key}.ann_file', ann_file, _loads_masks(dataset))
        categories = content['categories']
    if classes is not None:
        check_classes(classes, categories, key, ann_file)
    _check_image_files(dataset, content, key, ann_file)
    if content is None:
        return
    unlabelled = dataset.get('pipeline') and not _loads(dataset, 'LoadAnnotations')
    if classes is not None and not dataset.get('test_mode', False) and not unlabelled:
        ids = {c['id'] for c in categories if c['name'] in set(classes)}
        if not any(a['category_id'] in ids for a in content.get('annotations', [])):
            raise InputError(
                f'{key}.ann_file: {ann_file} has no annotation of any class of the '
                'dataset; there is nothing to train on'
            )


def _check_image_files(
    dataset: dict, content: dict | None, key: str, ann_file: str
) -> None:
    """Check that there is a folder and, if they are known, the images in it."""
    prefix = (dataset.get('data_prefix') or {}).get('img')
    if prefix is None:
        raise InputError(
            f'{key}.data_prefix={dataset.get("data_prefix")} does not say where the '
            "images are; write dict(img='folder/')"
        )
    folder = _local_path(dataset, prefix)
    if folder is None:
        return
    check_folder(folder, f'{key}.data_prefix.img')
    if content is None:
        return
    paths = [os.path.join(folder, image['file_name']) for image in content['images']]
    check_images(paths, f'{key}.data_prefix.img', ann_file)


def _check_evaluator(path: str, split: str, dataset: dict) -> None:
    """Compare the annotations of an evaluator with the dataset it is to judge."""
    key = f'{split}_evaluator.ann_file'
    check_file(path, key)
    if dataset.get('ann_file') is None:  # a wrapper: it has no classes of its own
        return
    dataset_key = f'{split}_dataloader.dataset'
    dataset_type = _dataset_type(dataset, dataset_key)
    own = _local_path(dataset, dataset['ann_file'])
    if not lists_plain_coco(dataset_type) or own is None:
        return
    if os.path.realpath(own) == os.path.realpath(path):
        return
    theirs = load_coco(path, key)
    classes = _classes(dataset, dataset_type, dataset_key)
    if classes is not None:
        given = read_categories(path, key) if theirs is None else theirs['categories']
        check_classes(classes, given, dataset_key, path)
    ours = load_coco(own, f'{dataset_key}.ann_file')
    if theirs is None or ours is None:
        return
    absent = {i['id'] for i in ours['images']} - {i['id'] for i in theirs['images']}
    if absent:
        raise InputError(
            f'{key}: {path} lacks {len(absent)} images of {own}, for example the id '
            f'{next(iter(absent))!r}; both have to be the same split'
        )


def _loads_masks(dataset: dict) -> bool:
    """Whether the pipeline reads masks."""
    return any(step.get('with_mask') for step in _loads(dataset, 'LoadAnnotations'))


def _loads(dataset: dict, kind: str) -> list[dict]:
    """Transforms of the pipeline that are of this type."""
    steps = dataset.get('pipeline') or []
    return [s for s in steps if isinstance(s, dict) and s.get('type') == kind]


def _dataset_type(dataset: dict, key: str) -> type:
    found = dataset.get('type')
    if isinstance(found, str):
        found = DATASETS.get(found)
    if not inspect.isclass(found):
        name, names = dataset.get('type'), sorted(DATASETS.module_dict)
        close = difflib.get_close_matches(str(name), names, 3)
        raise InputError(
            f'{key}.type={name!r} is not a registered dataset; choose from '
            f'{close or names}'
        )
    return found


def _classes(dataset: dict, dataset_type: Any, key: str) -> Sequence[str] | None:
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str) and not os.path.isfile(given):
        raise InputError(
            f'{key}.metainfo.classes={given!r} is neither a list of names nor a file '
            f'with one in each line; for a single class write ({given!r},)'
        )
    if given is None:
        return dataset_type.METAINFO.get('classes')
    return dataset_type._load_metainfo(dict(classes=given))['classes']


def _check_last_checkpoint(work_dir: str) -> None:
    """Check what ``last_checkpoint`` points to; without one a run starts anew."""
    last = find_latest_checkpoint(work_dir)
    if last is None or '://' in last or os.path.exists(last):
        return
    what = (
        f'names {last}, which does not exist (was the folder moved?)'
        if last
        else 'is empty (was the run stopped while writing it?)'
    )
    raise InputError(
        f'resume: {os.path.join(work_dir, "last_checkpoint")} {what}; name the '
        f'checkpoint to resume; {_choices(work_dir)}'
    )


def _iter_model_files(model: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(model, dict):
        for name, value in model.items():
            if name in _MODEL_FILES and isinstance(value, str):
                yield f'{key}.{name}', value
            yield from _iter_model_files(value, f'{key}.{name}')
    elif isinstance(model, list | tuple):
        for i, value in enumerate(model):
            yield from _iter_model_files(value, f'{key}.{i}')


def _choices(folder: str) -> str:
    """Name the checkpoints in a folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith('.pth'))
    except OSError:
        return f'there is no folder {folder} either'
    return f'checkpoints in {folder}: {", ".join(names) or "none"}'


def _local_path(dataset: dict, path: str) -> str | None:
    """Put ``path`` below the root as BaseDataset does; None if it is not local."""
    root, backend_args = dataset.get('data_root') or '', dataset.get('backend_args')
    if not (is_local(root, backend_args) and is_local(path, backend_args)):
        return None
    return join_path(root, path) if root and not is_abs(path) else path
