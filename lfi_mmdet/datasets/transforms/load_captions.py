"""Puts the captions of an image beside its instances."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine import fileio

from lfi_mmdet.engine.preflight import (
    InputError,
    check_captions,
    check_file,
    is_local,
)

#: What may be asked for where images and captions do not cover each other
MISSING, FOREIGN = ('error', 'empty'), ('error', 'ignore')


class Captions(Mapping[Any, list[str]]):
    """Image id -> its captions, packed into one block of bytes.

    Data loader workers that are forked after a file was read share the block. Half a
    million Python strings would be copied into every worker, since reading an object
    writes to its reference count.

    Args:
        captions: Image id -> captions.
    """

    def __init__(self, captions: Mapping[Any, list[str]]) -> None:
        packed = [json.dumps(texts).encode() for texts in captions.values()]
        self._index = {img_id: i for i, img_id in enumerate(captions)}
        self._ends = np.cumsum([0, *map(len, packed)])
        self._text = b''.join(packed)

    def __getitem__(self, img_id: Any) -> list[str]:
        i = self._index[img_id]
        return json.loads(self._text[self._ends[i] : self._ends[i + 1]])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def read_captions(path: str, key: str, backend_args: dict | None = None) -> Captions:
    """Read a COCO caption file, once per process as long as it does not change.

    Args:
        path: The file.
        key: Where the config names it, for messages.
        backend_args: See :func:`mmengine.fileio.get`.

    Raises:
        InputError: If it is missing, no JSON, cut off, or holds no captions.
    """
    changed = None
    if is_local(path, backend_args):
        check_file(path, key)
        stat = os.stat(path)
        changed = (stat.st_mtime_ns, stat.st_size)
    try:
        return _parse(path, changed, json.dumps(backend_args))
    except InputError as error:
        raise InputError(f'{key}: {error}') from None


@lru_cache(maxsize=8)
def _parse(path: str, changed: tuple | None, backend_args: str) -> Captions:
    try:
        content = json.loads(fileio.get(path, json.loads(backend_args)))
    except ValueError as error:
        raise InputError(f'{path} is no JSON, or was cut off: {error}') from None
    entries = content.get('annotations') if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(
            f'{path} is no COCO caption file; it lacks a list of annotations'
        )
    captions: dict[Any, list[str]] = {}
    for i, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        lacks = [name for name in ('image_id', 'caption') if name not in fields]
        if lacks:
            raise InputError(
                f'{path} is no COCO caption file: annotations[{i}] lacks '
                f'{" and ".join(map(repr, lacks))}'
                + (' (is it the file of the instances?)' if 'bbox' in fields else '')
            )
        if not isinstance(entry['caption'], str):
            raise InputError(
                f'{path}: annotations[{i}].caption={entry["caption"]!r} is no text'
            )
        if entry['caption'].strip():
            captions.setdefault(entry['image_id'], []).append(entry['caption'])
    if not captions:
        raise InputError(f'{path} holds no captions')
    return Captions(captions)


@TRANSFORMS.register_module()
class LoadCaptions(BaseTransform):
    """Add the captions of an image, for a teacher with ``texts='captions'``.

    Captions have no geometry, so the place in the pipeline does not matter, as long
    as it is before ``PackDetInputs``, whose ``meta_keys`` must name ``'captions'``.

    Required keys: ``img_id``. Added keys: ``captions``, a list of str with all captions
    of the image in the order of the file; those of white space only do not count.

    ``DatasetCheckHook`` calls :meth:`check_dataset` and :meth:`load_shared` before the
    first iteration.

    Args:
        ann_file: COCO caption file, the path from the working directory; entries of
            ``annotations`` have ``image_id`` and ``caption``.
        missing: What to do with images that have no captions: ``'error'``, or
            ``'empty'`` for an empty list.
        foreign: What to do with captions of images that are not in the annotation
            file of the dataset: ``'error'``, or ``'ignore'``, for a dataset that is a
            part of what the captions cover. If none is in the dataset, that is an
            error in any case.
        backend_args: Where the file is, see :func:`mmengine.fileio.get`.
    """

    def __init__(
        self,
        ann_file: str,
        missing: str = 'error',
        foreign: str = 'error',
        backend_args: dict | None = None,
    ) -> None:
        for name, value, choices in (
            ('missing', missing, MISSING),
            ('foreign', foreign, FOREIGN),
        ):
            if value not in choices:
                raise ValueError(
                    f'LoadCaptions.{name}={value!r} is not known; choose from {choices}'
                )
        self.ann_file, self.backend_args = ann_file, backend_args
        self.missing, self.foreign = missing, foreign
        self._captions: Captions | None = None

    def __getstate__(self) -> dict[str, Any]:
        # a process reads the file itself instead of receiving it through a pipe
        return {**vars(self), '_captions': None}

    def load_shared(self, key: str = 'LoadCaptions') -> Captions:
        """Read the file unless this process has done so.

        Called before the workers of a data loader are forked, it saves each of them,
        in every epoch, the time and memory to parse it.

        Args:
            key: Where the transform stands in the config, for messages.

        Raises:
            InputError: See :func:`read_captions`.
        """
        if self._captions is None:
            self._captions = read_captions(
                self.ann_file, f'{key}.ann_file', self.backend_args
            )
        return self._captions

    def check_dataset(self, dataset: Any, key: str) -> None:
        """Check that captions and dataset belong together.

        Args:
            dataset: Built dataset with this transform in its pipeline.
            key: Where the transform stands in the config, for messages.

        Raises:
            InputError: If the file cannot be used, the captions do not fit the images,
                see :func:`check_captions`, or ``PackDetInputs`` would drop them.
        """
        captions = self.load_shared(key)
        check_captions(
            dataset, captions, self.ann_file, key, self.missing, self.foreign
        )
        steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
        branches = [
            branch.transforms
            for step in steps
            for branch in getattr(step, 'branch_pipelines', {}).values()
        ]
        for step in chain(steps, *branches):
            keys = getattr(step, 'meta_keys', None)
            if keys is not None and 'captions' not in keys:
                raise InputError(
                    f'{key}: {type(step).__name__} drops the captions; write '
                    f'meta_keys={(*keys, "captions")}'
                )

    def transform(self, results: dict) -> dict:
        """Add ``captions``.

        Args:
            results: Of the steps before.

        Raises:
            InputError: If the image has none and ``missing='error'``.
            KeyError: If the dataset gives its images no ``img_id``.
        """
        captions = self.load_shared().get(results['img_id'], [])
        if not captions and self.missing == 'error':
            raise InputError(
                f'LoadCaptions.ann_file: {self.ann_file} has no captions of image id '
                f"{results['img_id']!r}; add them or write missing='empty'"
            )
        results['captions'] = captions
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(ann_file={self.ann_file!r}, '
            f'missing={self.missing!r}, foreign={self.foreign!r})'
        )
