"""Compares datasets, annotations and heads before the first iteration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.datasets.samplers import MultiSourceSampler
from mmdet.models import BBoxHead, FCNMaskHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from lfi_mmdet.engine.preflight import (
    InputError,
    check_classes,
    check_images,
    is_local,
    iter_datasets,
    lists_plain_coco,
    read_categories,
    unwrap_model,
)


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Check what mmdet takes silently and what would fail only after hours.

    Before training (training and validation dataset) and before testing:

    - every class has a category in the annotation file, in the same order;
    - all images exist (one listing per folder, local file systems only);
    - ``num_classes`` of all heads is the number of classes;
    - what the transforms of the pipeline have to say: one that reads a file of its own
      may have a method ``check_dataset(dataset, key)``, which raises ``InputError``.

    The first process checks and tells the others. Then, in every process, transforms
    that have a method ``load_shared(key)`` may read what the workers of the data loader
    are to inherit. Priority: VERY_HIGH.

    Args:
        images: Whether to look for the images.
    """

    priority = 'VERY_HIGH'

    def __init__(self, images: bool = True) -> None:
        self.images = images

    def before_train(self, runner: Runner) -> None:
        """Check the training dataset and, if there is validation, its dataset.

        Raises:
            InputError: In every process, if anything is wrong.
        """
        check_batch_size(runner.train_dataloader)
        datasets = {'train': runner.train_dataloader.dataset}
        if runner.val_loop is not None:
            datasets['val'] = runner.val_dataloader.dataset
        self._check(runner, datasets)

    def before_test(self, runner: Runner) -> None:
        """Check the test dataset; see :meth:`before_train`."""
        self._check(runner, {'test': runner.test_dataloader.dataset})

    def _check(self, runner: Runner, datasets: dict[str, Any]) -> None:
        problem: list[str | None] = [None]
        if is_main_process():
            try:
                for split, dataset in datasets.items():
                    key = f'{split}_dataloader.dataset'
                    for inner, part in iter_datasets(dataset, key):
                        self._check_dataset(part, inner)
                    for part, where, step in iter_transforms(dataset, key):
                        if hasattr(step, 'check_dataset'):
                            step.check_dataset(part, where)
                    check_heads(runner.model, dataset, key)
            except InputError as error:
                problem[0] = str(error)
        # one process that stops alone would leave the others waiting for it
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise InputError(problem[0])
        for split, dataset in datasets.items():
            key = f'{split}_dataloader.dataset'
            for _, where, step in iter_transforms(dataset, key):
                if hasattr(step, 'load_shared'):
                    step.load_shared(where)

    def _check_dataset(self, dataset: Any, key: str) -> None:
        if not isinstance(dataset, BaseDataset):
            return
        source = dataset.ann_file or ''
        if not is_local(source, getattr(dataset, 'backend_args', None)):
            return
        if not len(dataset):
            raise InputError(f'{key}: no image of {source} is left after filtering')
        classes = dataset.metainfo.get('classes')
        if classes is not None and lists_plain_coco(type(dataset)):
            categories = read_categories(source, f'{key}.ann_file')
            check_classes(classes, categories, key, source)
        if self.images:
            infos = (dataset.get_data_info(i) for i in range(len(dataset)))
            paths = [info['img_path'] for info in infos if 'img_path' in info]
            check_images(paths, f'{key}.data_prefix', source)


def check_batch_size(loader: Any) -> None:
    """Check that a sampler that mixes datasets makes batches of the loader's size.

    With another size, batches would begin anywhere in the mixture.

    Raises:
        InputError: If it does not.
    """
    sampler = getattr(loader, 'sampler', None)
    if isinstance(sampler, MultiSourceSampler) and (
        sampler.batch_size != loader.batch_size
    ):
        raise InputError(
            f'train_dataloader.batch_size={loader.batch_size}, but its sampler mixes '
            f'batches of sampler.batch_size={sampler.batch_size}'
            + (' and batch_sampler is not None' if loader.batch_size is None else '')
            + '; both have to be the same, with batch_sampler=None'
        )


def iter_transforms(dataset: Any, key: str) -> Iterator[tuple[Any, str, Any]]:
    """Find the transforms in the pipelines of a dataset, also those inside of others.

    Args:
        dataset: Built dataset, possibly wrapped; pipelines of wrappers are left out.
        key: Where the config gives it, for messages.

    Yields:
        The dataset inside, the key of the transform in the config, and the transform.
    """
    for inner, part in iter_datasets(dataset, key):
        pipeline = getattr(part, 'pipeline', None)
        for where, step in _iter_steps(pipeline, f'{inner}.pipeline'):
            yield part, where, step


def _iter_steps(steps: Any, key: str) -> Iterator[tuple[str, Any]]:
    # Compose is no list; RandomChoice has a list of them
    while not isinstance(steps, list | tuple):
        if not hasattr(steps, 'transforms'):
            return
        steps = steps.transforms
    for i, step in enumerate(steps):
        yield f'{key}.{i}', step
        inner = getattr(step, 'transforms', None)
        yield from _iter_steps(inner, f'{key}.{i}.transforms')
        for name, branch in getattr(step, 'branch_pipelines', {}).items():
            yield from _iter_steps(branch, f'{key}.{i}.{name}')


def check_heads(model: nn.Module, dataset: Any, key: str) -> None:
    """Check that every head has as many classes as the dataset.

    Args:
        model: Possibly wrapped for distributed training or test-time augmentation.
        dataset: Built dataset, possibly wrapped.
        key: Where the config gives the dataset, for messages.

    Raises:
        InputError: If one has not.
    """
    metainfo = dataset.metainfo  # of a ConcatDataset it may be a list
    classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
    if classes is None:
        return
    wrong = [
        f'model.{name}.num_classes={module.num_classes}'
        for name, module in unwrap_model(model).named_modules()
        if isinstance(module, BaseDenseHead | BBoxHead | FCNMaskHead)
        and isinstance(getattr(module, 'num_classes', None), int)
        and 'rpn_head' not in name.split('.')  # its only class is "object"
        and module.num_classes != len(classes)
    ]
    if wrong:
        raise InputError(
            f'{key} has {len(classes)} classes ({", ".join(classes[:10])}'
            f'{", ..." if len(classes) > 10 else ""}), but {" and ".join(wrong)}'
        )
