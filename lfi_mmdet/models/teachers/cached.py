"""A teacher whose targets were computed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from lfi_mmdet.datasets.target_store.meta import StoreMeta, differences
from lfi_mmdet.datasets.target_store.store import TargetStoreReader
from lfi_mmdet.datasets.target_store.teacher_config import (
    inner_teacher,
    more_texts,
    plain_teacher,
)
from lfi_mmdet.datasets.transforms.geometry import CUT, MOVE, PAD
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.structures import InteractionTargets

from ..utils.preprocessor import plain_preprocessor
from .base import FrozenTeacher
from .cached_pipeline import check_pipelines

#: What a data preprocessor may do to a batch: nothing that changes what an image shows
_BATCH_AUGMENTS = ('BatchSyncRandomResize', 'BatchFixedSizePad', 'BatchResize')
#: Fewer digits than these may fit by chance
_LEAST_DIGITS = 8


@MODELS.register_module()
class CachedTeacher(FrozenTeacher):
    """Hands on the targets that ``LoadCachedTargets`` has read in the data loader.

    It has no network, and needs neither weights nor the library they are of. What the
    teacher was is written in the store, and the texts are those of the store.

    Args:
        store: Folder of the stored targets, the same as that of ``LoadCachedTargets``.
        teacher: Config of the teacher that is cached; it is never built, only compared
            with what the store says it was made with, and ``tools/cache_teacher.py``
            reads it. None takes any.
        weights_sha256: Beginning, at least 8 digits, of the hash of the teacher's
            weights, as its log and the store tell it; None takes any.

    Raises:
        InputError: If the store cannot be used, or is of another teacher.
    """

    def __init__(
        self,
        store: str,
        teacher: dict | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__(view=dict(size=1))
        self.store = store
        with TargetStoreReader(store) as reader:
            self.meta = reader.meta
        self._check_store(teacher, weights_sha256)
        assert self.meta.classes is not None
        self.class_names = tuple(self.meta.classes)
        self.more_texts = more_texts(self.meta.teacher or {})
        #: What the transforms in front of each checked LoadCachedTargets may do
        self._checked: dict[str, frozenset[str]] = {}

    def _check_store(self, teacher: dict | None, weights: str | None) -> None:
        here = StoreMeta()
        if teacher is not None:
            here.teacher = plain_teacher(inner_teacher(teacher))
        reasons = differences(self.meta, here)
        if weights is not None:
            if len(weights) < _LEAST_DIGITS:
                raise InputError(
                    f'model.teacher.weights_sha256={weights!r} is too short; give at '
                    f'least {_LEAST_DIGITS} digits'
                )
            if not (self.meta.weights or '').startswith(weights):
                reasons.append(
                    f'weights: sha256 {self.meta.weights} in the store, {weights} here'
                )
        if reasons:
            raise InputError(
                f'model.teacher: {self.store} holds targets of another teacher: '
                f'{"; ".join(reasons)}. Make a store of this one by '
                'tools/cache_teacher.py, or change the config'
            )
        missing = [k for k in ('classes', 'layers') if not getattr(self.meta, k)]
        if missing:
            raise InputError(
                f'model.teacher: {self.store} does not say its {" and ".join(missing)}'
            )

    @property
    def num_layers(self) -> int:
        """Layers of the stored maps."""
        return len(self.meta.layers or ())

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, as the teacher told them."""
        return list(self.meta.layers or ())

    @property
    def num_texts(self) -> int:
        """One row per class, then one per further text or free word."""
        return self.meta.num_texts or len(self.class_names or ())

    @property
    def feature_dims(self) -> int | None:
        """Channels of the stored features; None if none are stored."""
        return self.meta.feature_dims or None

    @property
    def needs_labels(self) -> bool:
        """No: ``LoadCachedTargets`` decides what is present, and says what it lacks."""
        return False

    @property
    def has_relations(self) -> bool:
        """Whether relations are stored, or features that tell them."""
        return bool(self.meta.relations) or self.feature_dims is not None

    @property
    def has_mass(self) -> bool:
        """No: it is not stored."""
        return False

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Nothing to encode."""

    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """This teacher sees no images; see :meth:`__call__`."""
        raise TypeError('CachedTeacher has no network that could see images')

    def check_dataset(self, dataset: Any) -> None:
        """Check that the targets will be those of the images the student sees.

        Args:
            dataset: Built training dataset, possibly wrapped.

        Raises:
            InputError: If a pipeline has no ``LoadCachedTargets``, or one of another
                store; if a transform moves pixels and does not say where to; if
                classes differ; or if images are not in the store.
        """
        self._checked.update(check_pipelines(dataset, self.store))

    def weights_hash(self) -> str:
        """Hash of the weights that the targets were made with."""
        return self.meta.weights or 'unknown'

    def __call__(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        preprocessor: nn.Module,
        compact: bool = True,
    ) -> InteractionTargets:
        """Collect the targets of a batch.

        Args:
            batch_inputs: (B, 3, H, W); only the device matters.
            data_samples: Their data samples, with ``interactions``.
            preprocessor: The student's data preprocessor, which may resize and pad
                whole batches, but not change what an image shows.
            compact: Return only the rows of present texts; otherwise row t is text t.

        Raises:
            InputError: If a sample has no targets, comes from a pipeline that was not
                checked, or does not show what was reported.
        """
        _check_preprocessor(preprocessor)
        device = batch_inputs.device
        records = [self._record(sample) for sample in data_samples]
        cells = records[0].maps.shape[-2:].numel()

        def stack(name: str, axes: Sequence[int], fill: float = 0.0) -> Tensor | None:
            values = [record.get(name) for record in records]
            if any(value is None for value in values):
                return None
            return pad_rows([value.to(device) for value in values], axes, fill)

        texts, maps = stack('texts', [0]), stack('maps', [1], 1 / cells)
        assert texts is not None and maps is not None
        counts = torch.tensor([len(record.texts) for record in records])
        present = torch.arange(texts.shape[1]) < counts[:, None]
        targets = InteractionTargets(
            maps=maps,
            present=present.to(device, non_blocking=True),
            features=stack('features', [1]),
            relations=stack('relations', [1, 2]),
            texts=texts,
        )
        return targets if compact else targets.spread(self.num_texts)

    def _record(self, sample: DetDataSample) -> BaseDataElement:
        """The targets of a sample, if they can be trusted."""
        name = sample.get('img_path') or f'image {sample.get("img_id")!r}'
        record = sample.get('interactions')
        if record is None:
            raise InputError(
                f'{name} has no cached targets: put '
                f"dict(type='LoadCachedTargets', store={self.store!r}), "
                "dict(type='PackInteractionInputs') in the place of PackDetInputs of "
                'its pipeline'
            )
        may = self._checked.get(record.loader)
        if may is None:
            raise InputError(
                f'{name} comes from a pipeline that was not checked, so its targets '
                'might not be where its pixels are. ClassNamesHook has the pipelines '
                'of train_dataloader checked before training; a pipeline that is put '
                'in later (PipelineSwitchHook) cannot be used with CachedTeacher. In a '
                'program of your own call teacher.check_dataset(dataset)'
            )
        if (record.beyond and not may & {PAD, MOVE}) or (
            record.cut and not may & {CUT, MOVE}
        ):
            raise InputError(
                f'{name}: the image of {tuple(sample.img_shape)} pixels (originally '
                f'{tuple(sample.ori_shape)}) does not show what its transforms '
                f'reported: it extends {record.beyond:.1f} pixels beyond the original '
                f'image and lacks {record.cut:.1f}; a transform in front of '
                'LoadCachedTargets reports a wrong homography_matrix'
            )
        return record


def pad_rows(values: Sequence[Tensor], axes: Sequence[int], fill: float) -> Tensor:
    """Stack tensors that differ in the number of texts.

    Args:
        values: One tensor per image.
        axes: Which of its axes are texts.
        fill: What rows hold that an image has not.

    Returns:
        (B, ...), with at least one row.
    """
    shape = list(values[0].shape)
    for axis in axes:
        shape[axis] = max(1, *(value.shape[axis] for value in values))
    stacked = values[0].new_full((len(values), *shape), fill)
    for place, value in zip(stacked, values):
        place[tuple(slice(n) for n in value.shape)] = value
    return stacked


def _check_preprocessor(preprocessor: Any) -> None:
    plain = plain_preprocessor(preprocessor)
    for augment in getattr(plain, 'batch_augments', None) or ():
        if type(augment).__name__ not in _BATCH_AUGMENTS:
            raise InputError(
                f'data_preprocessor.batch_augments: {type(augment).__name__} is not '
                'known to leave pixels where they are in their image; cached targets '
                f'might drift. Known are {_BATCH_AUGMENTS}'
            )
