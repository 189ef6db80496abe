"""Check COCO annotation files before anything is built from them."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .errors import InputError

#: Larger files are not parsed, their ends are looked at
WHOLE_FILE_LIMIT = 64 * 2**20
#: What mmdet's CocoDataset cannot do without; files without answers have no annotations
_NEEDED = ('images', 'categories')
#: What it reads of every entry
_FIELDS = dict(
    images=('id', 'file_name', 'height', 'width'),
    categories=('id', 'name'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
)
_LONGEST_CATEGORIES = 2**24
_SHOWN = 20


def check_file(path: str, key: str) -> None:
    """Check that ``path``, which the config gives as ``key``, is a file with content.

    Raises:
        InputError: If it is missing, a folder, not readable or empty.
    """
    if not os.path.exists(path):
        where = '' if os.path.isabs(path) else f' in {os.getcwd()}'
        raise InputError(f'{key}: no file {path}{where}')
    if not os.path.isfile(path):
        raise InputError(f'{key}: {path} is a folder, not a file')
    if not os.access(path, os.R_OK):
        raise InputError(f'{key}: {path} cannot be read (permissions)')
    if not os.path.getsize(path):
        raise InputError(f'{key}: {path} is empty (0 bytes)')


def load_coco(path: str, key: str, categories: bool = True) -> dict[str, Any] | None:
    """Check a COCO annotation file and parse it unless it is large.

    Args:
        path: Local file.
        key: Where the config names it, for messages.
        categories: Whether it has to list categories.

    Returns:
        Its content; None for a file above :data:`WHOLE_FILE_LIMIT`, of which only the
        last character was checked, as one that was cut off has another.

    Raises:
        InputError: If it is missing, empty, cut off, no JSON, or no COCO annotations.
    """
    check_file(path, key)
    if os.path.getsize(path) > WHOLE_FILE_LIMIT:
        if _last_byte(path) != b'}':
            raise InputError(
                f'{key}: {path} does not end with "}}"; it was cut off or is no COCO '
                'annotation file'
            )
        return None
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except ValueError as error:
        raise InputError(f'{key}: {path} is no JSON, or was cut off: {error}') from None
    lacks = [
        name
        for name in (_NEEDED if categories else _NEEDED[:1])
        if not isinstance(content, dict) or not isinstance(content.get(name), list)
    ]
    if lacks:
        raise InputError(
            f'{key}: {path} is no COCO annotation file; it lacks a list of '
            f'{" and of ".join(lacks)}'
        )
    return content


def read_categories(path: str, key: str) -> list[dict]:
    """Read the categories of a COCO annotation file, quickly if it is large.

    Args:
        path: Local file.
        key: Where the config names it, for messages.

    Raises:
        InputError: See :func:`load_coco`.
    """
    content = load_coco(path, key)
    return _find_categories(path, key) if content is None else content['categories']


def check_entries(
    content: dict[str, Any], key: str, path: str, masks: bool = False
) -> None:
    """Check that images, categories and annotations have what mmdet reads of them.

    Args:
        content: Of the file, see :func:`load_coco`.
        key: Where the config names it, for messages.
        path: The file.
        masks: Whether every annotation (but of a crowd) needs a ``segmentation``.

    Raises:
        InputError: If an entry lacks a field, is of another form or belongs to no
            image, two of them have the same id, or there are no images.
    """
    if not content['images']:
        raise InputError(f'{key}: {path} lists no images')
    for name, fields in _FIELDS.items():
        for i, entry in enumerate(content.get(name, [])):
            if not isinstance(entry, dict):
                raise InputError(
                    f'{key}: {path} is not in the format of COCO: {name}[{i}] is '
                    f'{entry!r}, no object'
                )
            lacks = [field for field in fields if field not in entry]
            if lacks:
                raise InputError(
                    f'{key}: {path} is not in the format of COCO: {name}[{i}] lacks '
                    f'{some(lacks)}'
                )
    _check_annotations(content, key, path, masks)
    for name in ('images', 'annotations'):
        ids = [entry['id'] for entry in content.get(name, [])]
        if len(set(ids)) != len(ids):
            twice = [i for i, count in Counter(ids).items() if count > 1]
            raise InputError(
                f'{key}: {path} has several {name} with the id {some(twice, 3)}'
            )


def _check_annotations(
    content: dict[str, Any], key: str, path: str, masks: bool
) -> None:
    images = {image['id'] for image in content['images']}
    for i, annotation in enumerate(content.get('annotations', [])):
        where, box = f'{key}: {path}: annotations[{i}]', annotation['bbox']
        if not (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(value, int | float) for value in box)
        ):
            raise InputError(
                f'{where}.bbox={box!r} is not [x, y, width, height] in pixels'
            )
        if annotation['image_id'] not in images:
            raise InputError(
                f'{where}.image_id={annotation["image_id"]!r} is the id of no image'
            )
        crowd = annotation.get('iscrowd')
        if masks and not crowd and not annotation.get('segmentation'):
            raise InputError(
                f'{where} has no segmentation, which LoadAnnotations(with_mask=True) '
                'in the pipeline needs; add it or train without masks'
            )


def check_optional_categories(
    classes: Sequence[str], content: dict[str, Any], key: str, path: str
) -> None:
    """Check the categories of a file that need not have any.

    Args:
        classes: Class names of the dataset.
        content: Of the file.
        key: Where the config gives the dataset, for messages.
        path: The file.

    Raises:
        InputError: If they are of another form than COCO's, or a class is not there.
    """
    categories = content.get('categories') or []
    if not isinstance(categories, list) or not all(
        isinstance(category, dict) and 'name' in category for category in categories
    ):
        raise InputError(
            f'{key}.ann_file: {path} has categories that are no list of objects with a '
            'name; leave them out, or write them as COCO does'
        )
    if categories:
        _check_known(classes, categories, key, path)


def _check_known(
    classes: Sequence[str], categories: Sequence[dict], key: str, path: str
) -> list[str]:
    names = [category['name'] for category in categories]
    absent = [name for name in classes if name not in names]
    if absent:
        raise InputError(
            f'{key}.metainfo.classes: {path} has no {some(absent)}; its categories '
            f'are {some(names)}'
        )
    return names


def check_classes(
    classes: Sequence[str], categories: Sequence[dict], key: str, path: str
) -> None:
    """Check that the classes of a dataset are those of its annotations.

    mmdet leaves out a class that the annotations do not know, and numbers the labels
    in the order of the file, whatever the order of the classes. Either way label k
    would no longer be class k.

    Args:
        classes: Class names of the dataset.
        categories: Those of the annotation file, with ``id`` and ``name``.
        key: Where the config gives the dataset, for messages.
        path: The annotation file.

    Raises:
        InputError: If a class is unknown to the file, or the order is another.
    """
    names = _check_known(classes, categories, key, path)
    used = [name for name in names if name in set(classes)]
    if used != list(classes):
        raise InputError(
            f'{key}.metainfo.classes={some(classes)} are in another order than the '
            f'categories of {path}; mmdet numbers labels in the order of the file, so '
            f'write {some(used)}'
        )


def some(values: Sequence, limit: int = _SHOWN) -> str:
    """Show the first values and how many more there are."""
    text = ', '.join(repr(value) for value in values[:limit])
    return text + (f' and {len(values) - limit} more' if len(values) > limit else '')


def _last_byte(path: str) -> bytes:
    """Last byte that is no white space, of the last few thousand."""
    with open(path, 'rb') as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        return file.read().rstrip()[-1:]


def _find_categories(path: str, key: str) -> list[dict]:
    """Cut the list of categories out of a file that takes long to parse."""
    with (
        open(path, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', data):  # type: ignore[arg-type]
            text = data[match.end() : match.end() + _LONGEST_CATEGORIES].decode(
                'utf-8', 'ignore'
            )
            try:
                found, _ = json.JSONDecoder().raw_decode(text)
            except ValueError:
                continue
            if all(isinstance(c, dict) and {'id', 'name'} <= c.keys() for c in found):
                return found
    raise InputError(f'{key}: {path} is no COCO annotation file; it lacks categories')
