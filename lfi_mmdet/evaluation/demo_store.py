"""Targets of a demo batch, put into a store and read again, as training reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from torch import nn

from lfi_mmdet.datasets.target_store import (
    StoreMeta,
    TargetStoreReader,
    TargetStoreWriter,
    inner_teacher,
    plain_teacher,
)
from lfi_mmdet.datasets.target_store.selection import TextChoice, read_records
from lfi_mmdet.datasets.transforms import LoadCachedTargets, PackInteractionInputs
from lfi_mmdet.models.losses.base import InteractionLoss
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.registry import build_part

#: How ``tools/cache_teacher.py`` stores maps unless it is told otherwise
DTYPE, TEXTS = 'uint8', 'present'


def write_demo_store(
    cfg: Config, data: dict[str, Any], names: list[str], folder: str, device: str
) -> None:
    """Ask the teacher of a config about a batch and store what it says.

    Args:
        cfg: Config of a detector, whose teacher may be a ``CachedTeacher`` that names
            another one.
        data: Batch as a data loader hands it on.
        names: Class names, for a teacher without.
        folder: Where the store is made.
        device: Where the teacher is run.
    """
    import_modules_from_strings(**(cfg.get('custom_imports') or {}))
    config = inner_teacher(cfg.model.teacher)
    teacher = build_part(config, FrozenTeacher, 'model.teacher')
    if teacher.class_names is None:
        teacher.set_class_names(names)
    teacher.apply_(lambda tensor: tensor.to(device))
    preprocessor: nn.Module = MODELS.build(cfg.model.data_preprocessor).to(device)
    features = needs_features(cfg)
    batch = preprocessor(data, training=False)
    choice = TextChoice.parse(TEXTS)
    records = read_records(teacher, batch, preprocessor, choice, features)
    meta = StoreMeta(
        teacher=plain_teacher(config),
        classes=list(teacher.class_names or ()),
        num_texts=teacher.num_texts,
        layers=teacher.layer_names,
        grid=list(records[0].maps.shape[-2:]),
        feature_dims=teacher.feature_dims if features else None,
        dtype=DTYPE,
        texts=TEXTS,
        features=features,
        relations=records[0].relations is not None,
        num_images=len(records),
    )
    with TargetStoreWriter(folder, meta) as writer:
        for sample, record in zip(data['data_samples'], records):
            writer.put(sample.img_id, record)
    with TargetStoreReader(folder, allow_incomplete=True) as reader:
        shards = reader.shard_sizes()
    replace(meta, complete=True, shards=shards).write(folder)


def needs_features(cfg: Config) -> bool:
    """Whether a loss of a config compares features, and not only their cosines."""
    distiller = cfg.model.get('distiller') or {}
    parts = [distiller, *(distiller.get('distillers') or {}).values()]
    losses = [loss for part in parts if part for loss in _losses(part)]
    return any(loss.needs_features and not loss.takes_relations for loss in losses)


def _losses(distiller: Mapping) -> list[type[InteractionLoss]]:
    """Those that compare interactions."""
    given = (distiller.get('losses') or {}).values()
    found: list[Any] = [MODELS.get(loss['type']) for loss in given if loss]
    return [loss for loss in found if issubclass(loss, InteractionLoss)]


def attach_targets(data: dict[str, Any], folder: str, teacher: Any) -> None:
    """Give the samples their targets, by the transform that training uses.

    Args:
        data: The batch that the store was made of, changed in place.
        folder: The store.
        teacher: A ``CachedTeacher`` of it, which checks the pipeline first.
    """
    load = LoadCachedTargets(folder)
    teacher.check_dataset(_DemoDataset(data, load, teacher.class_names))
    for sample in data['data_samples']:
        results = dict(
            img_id=sample.img_id,
            ori_shape=sample.ori_shape,
            img_shape=sample.img_shape,
            gt_bboxes_labels=np.asarray(sample.gt_instances.labels),
        )
        sample.interactions = load.transform(results)['interactions']
    load.open().close()


class _DemoDataset:
    """What a ``CachedTeacher`` looks at in a dataset."""

    def __init__(
        self, data: dict[str, Any], load: LoadCachedTargets, names: tuple[str, ...]
    ) -> None:
        self.samples = data['data_samples']
        self.metainfo = dict(classes=names)
        self.pipeline = Compose([load, PackInteractionInputs()])

    def __len__(self) -> int:
        return len(self.samples)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The id of an image."""
        return dict(img_id=self.samples[index].img_id)
