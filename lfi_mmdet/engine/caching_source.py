"""The teacher and the dataset whose targets are cached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.data import DataLoader

from lfi_mmdet.datasets.target_store import StoreMeta, inner_teacher, plain_teacher
from lfi_mmdet.datasets.target_store.selection import (
    TextChoice,
    iter_teachers,
    read_records,
)
from lfi_mmdet.datasets.unaugmented import describe_dataset, unaugmented_dataset
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.registry import build_part

from .caching_options import CachingOptions
from .hooks.dataset_check_hook import iter_transforms
from .preflight import InputError, check_images, is_local, iter_datasets


@dataclass
class Source:
    """Teacher and dataset, as the config has them.

    Attributes:
        teacher: With class names.
        config: Its config.
        preprocessor: The data preprocessor of the detector.
        dataset: Without augmentation.
    """

    teacher: FrozenTeacher
    config: dict[str, Any]
    preprocessor: nn.Module
    dataset: Any

    @classmethod
    def build(cls, cfg: Config, split: str, device: torch.device) -> Source:
        """Build both.

        Raises:
            InputError: If the config has no teacher, or its classes are not those of
                the dataset.
            Exception: Whatever the teacher raises about its files.
        """
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        dataset = unaugmented_dataset(cfg, split)
        model = cfg.get('model') or {}
        if not model.get('teacher'):
            raise InputError(f'{cfg.filename}: model.teacher is None; nothing to cache')
        if not model.get('data_preprocessor'):
            raise InputError(f'{cfg.filename} has no model.data_preprocessor')
        config = inner_teacher(model['teacher'])
        teacher = build_part(config, FrozenTeacher, 'model.teacher')
        for one in iter_teachers(teacher):
            if not getattr(one, 'cacheable', True):
                raise InputError(
                    f'what {type(one).__name__} says of an image depends on the other '
                    'images of its batch, so it cannot be cached; train with it online'
                )
        names = tuple(dataset.metainfo.get('classes') or ())
        if not names:
            raise InputError(f'{split}_dataloader.dataset has no class names')
        if teacher.class_names is None:
            teacher.set_class_names(names)
        elif teacher.class_names != names:
            odd = sorted(set(teacher.class_names) ^ set(names)) or 'the order'
            raise InputError(
                f'model.teacher.class_names differ from those of the dataset in {odd}'
            )
        teacher.apply_(lambda tensor: tensor.to(device))
        preprocessor = MODELS.build(model['data_preprocessor']).to(device)
        return cls(teacher, config, preprocessor, dataset)

    def check(self, split: str) -> None:
        """Check all of the dataset.

        Raises:
            InputError: If images are missing, or what transforms and teacher ask of
                it.
        """
        key = f'{split}_dataloader.dataset'
        for inner, part in iter_datasets(self.dataset, key):
            infos = (part.get_data_info(i) for i in range(len(part)))
            paths = [info['img_path'] for info in infos if 'img_path' in info]
            if is_local(''.join(paths[:1]), getattr(part, 'backend_args', None)):
                check_images(paths, f'{inner}.data_prefix', part.ann_file)
        for part, where, step in iter_transforms(self.dataset, key):
            if hasattr(step, 'check_dataset'):
                step.check_dataset(part, where)
        self.teacher.check_dataset(self.dataset)

    def batches(
        self, indices: Sequence[int], options: CachingOptions
    ) -> Iterable[dict[str, Any]]:
        """Batches of chosen images, out of the data preprocessor."""
        loader = DataLoader(
            self.dataset,
            batch_size=options.batch_size,
            sampler=indices,
            num_workers=options.workers,
            collate_fn=pseudo_collate,
        )
        for batch in loader:
            with torch.no_grad():
                yield self.preprocessor(batch, training=False)


def describe(source: Source, options: CachingOptions) -> StoreMeta:
    """What a store of these targets says about itself.

    The first image is put through the teacher: errors show before anything is written.
    """
    teacher = source.teacher
    choice = TextChoice.parse(options.texts)
    batch = next(iter(source.batches([0], replace(options, workers=0))))
    (record,) = read_records(
        teacher, batch, source.preprocessor, choice, options.features
    )
    features = record.features
    return StoreMeta(
        teacher=plain_teacher(source.config),
        weights=teacher.weights_hash(),
        classes=list(teacher.class_names or ()),
        num_texts=teacher.num_texts,
        view=[
            dict(
                size=list(one.view.size),
                mean=[round(v, 6) for v in one.view.mean.flatten().tolist()],
                std=[round(v, 6) for v in one.view.std.flatten().tolist()],
                tiles=list(one.view.tiles),
                overlap=one.view.overlap,
            )
            for one in iter_teachers(teacher)
            if not hasattr(one, 'teachers')
        ],
        layers=teacher.layer_names,
        grid=list(record.maps.shape[-2:]),
        feature_dims=None if features is None else int(features.shape[-1]),
        dtype=options.dtype,
        texts=str(choice),
        features=options.features,
        relations=record.relations is not None,
        dataset=describe_dataset(source.dataset),
    )
