"""Check that captions belong to the images of a dataset."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Collection, Sequence
from typing import Any

from .annotations import some
from .configs import is_local, lists_plain_coco, needs_categories
from .errors import InputError

_SHOWN = 3
#: Bytes in which a list of images is looked for at first; COCO's has 36 MB
_USUAL_LENGTH = 2**26


def check_captions(
    dataset: Any,
    captions: Collection,
    source: str,
    key: str,
    missing: str = 'error',
    foreign: str = 'error',
) -> None:
    """Check that the captions are of the dataset's images, and every image has some.

    Images that the dataset's filter has left out may have captions. Only datasets that
    read COCO files in mmdet's way say which ones those are; of others it is checked
    that some of the captions are theirs.

    Args:
        dataset: Built dataset, not a wrapper.
        captions: Ids of the images that have captions.
        source: The caption file, for messages.
        key: Where the config loads them, for messages.
        missing: ``'error'``, or anything else to let images without captions pass.
        foreign: ``'error'``, or anything else to let captions of other images pass.

    Raises:
        InputError: If no caption is of an image of the dataset, some are not, or an
            image has none.
    """
    ids = [dataset.get_data_info(i).get('img_id') for i in range(len(dataset))]
    if None in ids:
        raise InputError(
            f'{key}: {type(dataset).__name__} gives its images no img_id, by which '
            'captions are found'
        )
    own, owner = set(ids), getattr(dataset, 'ann_file', None) or 'the dataset'
    if not own.intersection(captions):
        raise InputError(
            f'{key}.ann_file: none of the {len(captions)} images with captions in '
            f'{source} is one of the {len(own)} images of {owner} (ids '
            f'{some(list(captions), _SHOWN)} against {some(ids, _SHOWN)}); take the '
            'captions of the same split'
        )
    others = [] if foreign != 'error' else [i for i in captions if i not in own]
    listed = _listed_ids(dataset) if others else None
    if listed is not None:
        known = set(listed)
        others = [img_id for img_id in others if img_id not in known]
        if others:
            raise InputError(
                f'{key}.ann_file: {len(others)} of the {len(captions)} images with '
                f'captions in {source} are not among the {len(known)} of {owner} (ids '
                f'{some(others, _SHOWN)}); take the captions of the same split, or '
                "write foreign='ignore' if the dataset is a part of it"
            )
    without = [img_id for img_id in ids if img_id not in captions]
    if missing == 'error' and without:
        raise InputError(
            f'{key}.ann_file: {source} has no captions for {len(without)} of the '
            f'{len(ids)} images of {owner} (ids {some(without, _SHOWN)}); add them, '
            "or write missing='empty' to let those images pass without words"
        )


def _listed_ids(dataset: Any) -> Sequence | None:
    """Ids of all images in a dataset's COCO file, before its filter; None if unknown.

    The list is cut out of the file: parsing the annotations of COCO once more would
    take longer than mmdet did.
    """
    if needs_categories(type(dataset)) and not lists_plain_coco(type(dataset)):
        return None
    path = dataset.ann_file
    if not is_local(path, getattr(dataset, 'backend_args', None)):
        return None
    with (
        open(path, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for match in re.finditer(rb'"images"\s*:\s*(?=\[)', data):  # type: ignore[arg-type]
            for length in (_USUAL_LENGTH, len(data)):
                text = data[match.end() : match.end() + length].decode(
                    'utf-8', 'ignore'
                )
                try:
                    found, _ = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    continue
                if all(isinstance(image, dict) and 'id' in image for image in found):
                    return [image['id'] for image in found]
    return None
