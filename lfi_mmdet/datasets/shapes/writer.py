"""Write scenes as a COCO dataset."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from .captions import captions
from .coco import encode_mask
from .config import SceneConfig
from .preview import contact_sheet
from .render import render
from .scene import sample_scene

GENERATOR = 'lfi_mmdet.datasets.shapes'
# Raise it with every change that moves a pixel or a word
GENERATOR_VERSION = 1
SPLITS = ('train', 'val', 'unlabeled')
PREVIEW_FILE = 'preview.png'

_CARD_FILE = 'dataset.json'
# Ids start here, so that those of one split do not depend on another's size
_FIRST_ID = {'train': 1_000_000, 'val': 2_000_000, 'unlabeled': 3_000_000}
_MAX_IMAGES = 1_000_000
_IDS_PER_IMAGE = 100
_CHUNK = 32


@dataclass(frozen=True)
class _Job:
    """A run of images of one split, small enough to share out."""

    folder: Path
    split: str
    start: int
    stop: int
    seed: int
    config: SceneConfig


@dataclass
class _Records:
    images: list[dict]
    instances: list[dict]
    captions: list[dict]


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB image, uint8, has shape (h, w, 3)."""
    done, data = cv2.imencode('.png', image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise RuntimeError(f'{path}: the PNG encoder failed')
    path.write_bytes(data.tobytes())


def _write_images(job: _Job) -> _Records:
    records = _Records([], [], [])
    for index in range(job.start, job.stop):
        scene = sample_scene(job.seed, job.split, index, job.config)
        image_id = _FIRST_ID[job.split] + index
        file_name = f'{image_id:012d}.png'
        write_png(job.folder / job.split / file_name, render(scene))
        side = job.config.size
        records.images.append(
            dict(id=image_id, file_name=file_name, width=side, height=side)
        )
        first = image_id * _IDS_PER_IMAGE
        for number, text in enumerate(islice(captions(scene), job.config.captions)):
            records.captions.append(
                dict(id=first + number, image_id=image_id, caption=text)
            )
        if job.split == 'unlabeled':
            continue
        for number, item in enumerate(scene.objects):
            name = str(scene.items[item].category)
            records.instances.append(
                dict(
                    id=first + number,
                    image_id=image_id,
                    category_id=job.config.class_names.index(name) + 1,
                    iscrowd=0,
                    **encode_mask(scene.visible_mask(item)),
                )
            )
    return records


def _one_thread() -> None:
    # The processes already share the cores
    cv2.setNumThreads(1)


def _run(jobs: list[_Job], workers: int) -> Iterator[_Records]:
    if workers == 1:
        yield from map(_write_images, jobs)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context('spawn'), initializer=_one_thread
    )
    try:
        yield from pool.map(_write_images, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(',', ':')))


def _write_annotations(folder: Path, split: str, all_records: Iterable[_Records]) -> None:
    images: list[dict] = []
    instances: list[dict] = []
    texts: list[dict] = []
    for records in all_records:
        images += records.images
        instances += records.instances
        texts += records.captions
    return images, instances, texts
