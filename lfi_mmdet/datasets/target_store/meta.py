"""What a store of targets says about itself, and how two of them are compared."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lfi_mmdet.version import __version__

from .codec import CODEC_VERSION
from .errors import TargetStoreError

#: Raised when ``store.json`` or the shards are laid out in another way
FORMAT_VERSION = 1
#: Raised when the same teacher would give other targets, or a default has changed
TARGETS_VERSION = 1
#: Name of the file in the folder of the store
META_FILE = 'store.json'

_SHOWN = 12


@dataclass
class StoreMeta:
    """Contents of ``store.json``. None stands for what is not known or not compared.

    Attributes:
        teacher: The teacher's config, see :func:`.teacher_config.plain_teacher`.
        weights: SHA-256 of its weights.
        classes: Names of the classes; text k is class k.
        num_texts: Number of texts the teacher has: the classes, then free words.
        view: How each teacher (there may be several at once) makes its input: ``size``,
            ``mean``, ``std`` and, for tiles, ``tiles`` and ``overlap``.
        layers: Names of the L layers.
        grid: [h, w] of the maps.
        feature_dims: Channels of the features that are kept; None if none are.
        dtype: Format of the maps, see :mod:`.codec`.
        texts: Which texts are kept: ``'present'``, ``'all'`` or ``'top:N'``.
        features: Whether features are kept.
        relations: Whether cosines between features are.
        dataset: ``ann_file`` (name), ``sha256`` of it and ``num_images`` of the whole
            dataset; for several, joined by commas and summed up.
        format_version: See :data:`FORMAT_VERSION`.
        codec_version: See :data:`.codec.CODEC_VERSION`.
        targets_version: See :data:`TARGETS_VERSION`.
        code_version: Version of lfi_mmdet that made the store; told, not compared.
        num_images: Images that are to be stored.
        complete: Whether all of them are.
        shards: Images by name of the file, once it is complete.
        report: Sizes, errors and times, once it is complete.
    """

    teacher: dict[str, Any] | None = None
    weights: str | None = None
    classes: list[str] | None = None
    num_texts: int | None = None
    view: list[dict[str, Any]] | None = None
    layers: list[str] | None = None
    grid: list[int] | None = None
    feature_dims: int | None = None
    dtype: str | None = None
    texts: str | None = None
    features: bool | None = None
    relations: bool | None = None
    dataset: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION
    codec_version: int = CODEC_VERSION
    targets_version: int = TARGETS_VERSION
    code_version: str = __version__
    num_images: int | None = None
    complete: bool = False
    shards: dict[str, int] | None = None
    report: dict[str, Any] | None = None

    @property
    def num_layers(self) -> int:
        """Number of layers L."""
        return len(self.layers or ())

    def write(self, folder: str | Path) -> None:
        """Write ``store.json``, whole or not at all.

        Raises:
            OSError: If the disk is full.
        """
        path = Path(folder) / META_FILE
        aside = path.with_name(f'.{META_FILE}.{os.getpid()}')
        try:
            with open(aside, 'w', encoding='utf-8') as file:
                json.dump(asdict(self), file, indent=2, allow_nan=False)
                file.write('\n')
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: str | Path) -> StoreMeta:
        """Read ``store.json``.

        Raises:
            TargetStoreError: If there is none, or it cannot be read, or a later
                version has written it.
        """
        path = Path(folder) / META_FILE
        if not path.is_file():
            what = 'there is no such folder'
            if Path(folder).is_dir():
                what = f'it has no {META_FILE}'
            elif Path(folder).exists():
                what = 'it is a file'
            raise TargetStoreError(
                f'{folder} is no store of targets: {what}. Make one by '
                f'`python tools/cache_teacher.py CONFIG --out {folder}`'
            )
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            version = content['format_version']
            known = {f.name for f in fields(cls)}
            meta = cls(**{k: v for k, v in content.items() if k in known})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetStoreError(
                f'{path} is damaged or of something else ({type(error).__name__}: '
                f'{error})'
            ) from error
        if version != FORMAT_VERSION:
            raise TargetStoreError(
                f'{folder} is a store in format {version}, this version of lfi_mmdet '
                f'({__version__}) reads {FORMAT_VERSION}; cache the targets '
                'anew'
            )
        return meta


def differences(store: StoreMeta, here: StoreMeta) -> list[str]:
    """Compare what a store holds with what is wanted.

    Args:
        store: Of the store.
        here: What is wanted; what is None is not compared.

    Returns:
        One sentence per difference; none if the store may be used.
    """
    return list(_differences(store, here))


def _differences(store: StoreMeta, here: StoreMeta) -> Iterator[str]:
    same_weights = None not in (store.weights, here.weights)
    same_weights = same_weights and store.weights == here.weights
    if store.teacher is not None and here.teacher is not None:
        yield from _compare_configs(store.teacher, here.teacher, same_weights)
    if _differ(store.weights, here.weights):
        yield f'weights: sha256 {_short(store.weights)} in the store, ' + (
            f'{_short(here.weights)} here'
        )
    if store.classes is not None and here.classes is not None:
        yield from _compare_classes(store.classes, here.classes)
    if store.dataset is not None and here.dataset is not None:
        yield from _compare_datasets(store.dataset, here.dataset)
    if store.view is not None and here.view is not None:
        yield from _compare_views(store.view, here.view)
    for name, what in (
        ('layers', 'layers'),
        ('grid', 'grid of the maps'),
        ('num_texts', 'number of texts'),
        ('feature_dims', 'channels of the features'),
        ('dtype', 'format of the maps (--dtype)'),
        ('texts', 'texts that are kept (--texts)'),
        ('features', 'whether features are kept (--features)'),
        ('relations', 'whether relations are kept'),
        ('format_version', 'format of the store'),
        ('codec_version', 'format of the records'),
        ('targets_version', 'meaning of the targets (TARGETS_VERSION)'),
    ):
        ours, theirs = getattr(store, name), getattr(here, name)
        if _differ(ours, theirs):
            yield f'{what}: {_text(ours)} in the store, {_text(theirs)} here'


def _differ(store: Any, here: Any) -> bool:
    return store is not None and here is not None and store != here


def _compare_configs(
    store: Mapping[str, Any], here: Mapping[str, Any], same_weights: bool
) -> Iterator[str]:
    if store.get('type') != here.get('type'):
        yield f'teacher: {store.get("type")} in the store, {here.get("type")} here'
        return
    for name in sorted(store.keys() | here.keys()):
        # a tag and a file may be the same weights
        if name == 'pretrained' and same_weights:
            continue
        if store.get(name) != here.get(name):
            texts = [
                repr(cfg[name]) if name in cfg else 'left at its default'
                for cfg in (store, here)
            ]
            yield f'teacher.{name}: {texts[0]} in the store, {texts[1]} here'


def _compare_classes(store: list[str], here: list[str]) -> Iterator[str]:
    if list(store) == list(here):
        return
    if len(store) != len(here):
        yield f'classes: {len(store)} in the store, {len(here)} here'
        return
    index = next(i for i, pair in enumerate(zip(store, here)) if pair[0] != pair[1])
    yield f'class {index}: {store[index]!r} in the store, {here[index]!r} here'


def _compare_datasets(
    store: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[str]:
    if store.get('sha256') != here.get('sha256'):
        names = [
            f'{d.get("ann_file")} (sha256 {_short(d.get("sha256"))}, '
            f'{d.get("num_images")} images)'
            for d in (store, here)
        ]
        yield f'dataset: {names[0]} in the store, {names[1]} here'
    elif store.get('num_images') != here.get('num_images'):
        yield (
            f'dataset: {store.get("num_images")} images in the store, '
            f'{here.get("num_images")} here'
        )


def _compare_views(
    store: list[dict[str, Any]], here: list[dict[str, Any]]
) -> Iterator[str]:
    if len(store) != len(here):
        yield f'image views: {len(store)} in the store, {len(here)} here'
        return
    for i, (ours, theirs) in enumerate(zip(store, here)):
        which = f' of teacher {i}' if len(store) > 1 else ''
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                yield (
                    f'image {name}{which}: {ours.get(name)} in the store, '
                    f'{theirs.get(name)} here'
                )


def _short(digest: str | None) -> str:
    return f'{digest[:_SHOWN]}...' if digest else 'unknown'


def _text(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN:
        return f'{value[:_SHOWN]} and {len(value) - _SHOWN} more'
    return str(value)
