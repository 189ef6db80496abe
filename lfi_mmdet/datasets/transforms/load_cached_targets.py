"""Reads the teacher's targets of an image and brings them onto what is left of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.structures import BaseDataElement

from lfi_mmdet.datasets.target_store.store import TargetStoreReader
from lfi_mmdet.engine.preflight import InputError

from .measure_geometry import measure_geometry
from .stored_presence import RULES, StoredPresence
from .warp_maps import warp_maps

#: Pixels, and share of the longer side, by which report and image may differ: mmdet
#: rounds sizes, but not always the homography
SLACK, RELATIVE_SLACK = 2.0, 0.005


@TRANSFORMS.register_module()
class LoadCachedTargets(BaseTransform):
    """Add the targets that ``tools/cache_teacher.py`` has stored for ``CachedTeacher``.

    It stands behind all transforms that move pixels, and before
    ``PackInteractionInputs``, which takes the place of ``PackDetInputs``::

        dict(type='RandomFlip', prob=0.5),
        dict(type='LoadCachedTargets', store='data/targets'),
        dict(type='PackInteractionInputs'),

    So it sees ``homography_matrix`` itself, whatever ``meta_keys`` say: behind the
    packing, a matrix that was dropped could not be told from one that was never
    there. And the targets are tensors of the data sample that move to the device with
    the ground truth, which meta information does not.

    Before training, ``CachedTeacher`` checks the transforms in front of this one, see
    :func:`check_geometry`. Targets of a pipeline that was not checked, for instance
    because a hook put it in later, are refused by it.

    Required keys: ``img_id``, ``ori_shape``, ``img_shape``, ``gt_bboxes_labels`` where
    the ground truth decides, ``homography_matrix`` (optional). Added key:
    ``interactions``, a ``BaseDataElement`` with the rows of the P texts that are
    present: ``texts`` (P,), int64, as in :class:`StoredTargets`; ``maps``
    (L, P, h, w), over ``img_shape``; ``relations`` (L, P, P) and ``features``
    (L, P, C), where the store has them, of the whole original image; all float32. Its
    meta information: ``loader`` says which transform made it, ``beyond`` and ``cut``
    are those of :func:`measure_geometry`, as far as rounding does not explain them.

    Args:
        store: Folder of the stored targets.
        present: Which stored texts count as present in what augmentation left:
            ``'ground_truth'``: classes that are still among the annotations, and all
            free words; ``'teacher'``: those the teacher found in the whole image;
            ``'all'``: all that are stored. None for the rule of the teacher that made
            the store. Texts whose maps have nothing in what is left are dropped.
        allowed: Names of classes of transforms of your own that either move no pixels
            or multiply ``homography_matrix`` by their own.
    """

    def __init__(
        self,
        store: str,
        present: str | None = None,
        allowed: Sequence[str] = (),
    ) -> None:
        if present is not None and present not in RULES:
            raise ValueError(
                f'LoadCachedTargets.present={present!r} is not known; choose from '
                f'{RULES}, or None for the rule of the store'
            )
        if isinstance(allowed, str):
            raise ValueError(
                f'LoadCachedTargets.allowed={allowed!r} is no list; write '
                f'({allowed!r},)'
            )
        self.store, self.present, self.allowed = store, present, tuple(allowed)
        #: Survives forking and pickling, not building anew
        self.token = uuid.uuid4().hex
        self._reader: TargetStoreReader | None = None
        self._presence: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # a process opens the store itself
        return {**vars(self), '_reader': None}

    def open(self) -> TargetStoreReader:
        """Open the store unless this process has done so.

        Raises:
            InputError: If it cannot be used, or not with this ``present``.
        """
        if self._reader is None:
            reader = TargetStoreReader(self.store)
            self._presence = StoredPresence(reader.meta, self.present)
            self._reader = reader
        return self._reader

    def transform(self, results: dict) -> dict:
        """Add ``interactions``.

        Args:
            results: Of the steps before.

        Raises:
            InputError: If the store has no targets of the image, or its geometry
                cannot be what was reported.
        """
        shapes = results['ori_shape'][:2], results['img_shape'][:2]
        geometry = self._measure(results, *shapes)
        record = self.open().get(results['img_id'])
        rows = self._presence(record, _labels(results), _name(results))
        maps, found = warp_maps(
            record.maps[:, rows], results.get('homography_matrix'), *shapes
        )
        kept = found.all(0)
        if not kept.all():
            maps, rows = maps[:, kept], rows[kept]
        targets = BaseDataElement(
            metainfo=dict(loader=self.token, **geometry),
            texts=torch.from_numpy(record.texts[rows]),
            maps=torch.from_numpy(np.ascontiguousarray(maps)),
        )
        if record.relations is not None:
            relations = record.relations[:, rows[:, None], rows]
            targets.relations = torch.from_numpy(relations)
        if record.features is not None:
            targets.features = torch.from_numpy(record.features[:, rows])
        results['interactions'] = targets
        return results

    def _measure(
        self, results: dict, ori_shape: tuple[int, int], img_shape: tuple[int, int]
    ) -> dict[str, float]:
        """Compare image and report; see :func:`measure_geometry`."""
        matrix = results.get('homography_matrix')
        try:
            beyond, cut = measure_geometry(matrix, ori_shape, img_shape)
        except ValueError as error:
            raise InputError(
                f'LoadCachedTargets: {error} ({_name(results)}); a transform in front '
                'of it reports a wrong geometry'
            ) from None
        if matrix is None and (results.get('flip') or cut > SLACK):
            raise InputError(
                f'LoadCachedTargets: {_name(results)} was '
                f'{"flipped" if results.get("flip") else "cropped or resized"} from '
                f'{tuple(ori_shape)} to {tuple(img_shape)} pixels, but no transform in '
                "front of it reported so in 'homography_matrix'; use those of mmdet"
            )
        slack = SLACK + RELATIVE_SLACK * max(img_shape)
        return dict(beyond=max(0.0, beyond - slack), cut=max(0.0, cut - slack))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(store={self.store!r}, present={self.present!r}, '
            f'allowed={self.allowed})'
        )


def _name(results: dict) -> str:
    return str(results.get('img_path') or f'image {results.get("img_id")!r}')


def _labels(results: dict) -> np.ndarray | None:
    """Classes of the annotations that are not ignored."""
    labels, ignored = (results.get(k) for k in ('gt_bboxes_labels', 'gt_ignore_flags'))
    if labels is None or ignored is None:
        return labels
    return labels[~np.asarray(ignored, bool)]
