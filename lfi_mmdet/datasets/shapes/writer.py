"""Write scenes as a COCO dataset."""

import json
import multiprocessing
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from .captions import captions
from .coco import encode_mask
from .config import SceneConfig
from .render import render
from .scene import sample_scene
from .styles import check_domain

GENERATOR = 'lfi_mmdet.datasets.shapes'
# Raise it with every change that moves a pixel or a word
GENERATOR_VERSION = 1
SPLITS = ('train', 'val', 'unlabeled')
# In the card only if it was asked for
_DOMAINS = 'unlabeled_domains'
CARD_FILE, PREVIEW_FILE = 'dataset.json', 'preview.png'

# Fixed per split, so that the ids of one do not depend on the size of another
_FIRST_ID = {'train': 1_000_000, 'val': 2_000_000, 'unlabeled': 3_000_000}
_MAX_IMAGES = 1_000_000
_IDS_PER_IMAGE = 100
_CHUNK = 32


@dataclass(frozen=True)
class _Job:
    """Consecutive images of one split, made by one process."""

    folder: Path
    split: str
    indices: range
    seed: int
    config: SceneConfig
    domains: tuple[str, ...]

    def config_of(self, index: int) -> SceneConfig:
        """That of one image; images take turns with the domains."""
        if not self.domains:
            return self.config
        return replace(self.config, domain=self.domains[index % len(self.domains)])


@dataclass
class _Records:
    """COCO records of a job."""

    images: list[dict[str, Any]]
    instances: list[dict[str, Any]]
    captions: list[dict[str, Any]]


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an RGB image, uint8, has shape (h, w, 3)."""
    bgr = np.ascontiguousarray(image[..., ::-1])
    done, data = cv2.imencode('.png', bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise RuntimeError(f'{path}: the image could not be encoded')
    path.write_bytes(data.tobytes())


def _write_images(job: _Job) -> _Records:
    config, side = job.config, job.config.size
    records = _Records([], [], [])
    for index in job.indices:
        scene = sample_scene(job.seed, job.split, index, job.config_of(index))
        image_id = _FIRST_ID[job.split] + index
        first_id = image_id * _IDS_PER_IMAGE
        name = f'{image_id:012d}.png'
        write_png(job.folder / job.split / name, render(scene))
        records.images.append(
            dict(id=image_id, file_name=name, width=side, height=side)
        )
        for number, text in enumerate(islice(captions(scene), config.captions)):
            records.captions.append(
                dict(id=first_id + number, image_id=image_id, caption=text)
            )
        if job.split == 'unlabeled':
            continue
        for number, item in enumerate(scene.objects):
            category = str(scene.items[item].category)
            records.instances.append(
                dict(
                    id=first_id + number,
                    image_id=image_id,
                    category_id=config.class_names.index(category) + 1,
                    iscrowd=0,
                    **encode_mask(scene.visible_mask(item)),
                )
            )
    return records


def _start_worker() -> None:
    # An interrupt is the parent's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


_Map = Callable[[Callable[[_Job], _Records], Iterable[_Job]], Iterable[_Records]]


@contextmanager
def _mapper(workers: int) -> Iterator[_Map]:
    # On images this small threads cost more than they bring; and a process may
    # only fork while OpenCV's are at rest
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        if workers == 1:
            yield map
            return
        # A fresh process would first import torch with the rest of the package
        method = 'fork' if sys.platform == 'linux' else 'spawn'
        context = multiprocessing.get_context(method)
        pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)
    finally:
        cv2.setNumThreads(threads)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


def _write_annotations(folder: Path, split: str, records: _Records, names: Any) -> None:
    base = dict(
        info=dict(description='Shapes scenes', version=str(GENERATOR_VERSION)),
        licenses=[],
        images=records.images,
    )
    categories = [
        dict(id=number, name=name, supercategory='shape')
        for number, name in enumerate(names, start=1)
    ]
    _write_json(
        folder / f'captions_{split}.json', base | dict(annotations=records.captions)
    )
    if split == 'unlabeled':
        _write_json(
            folder / f'image_info_{split}.json', base | dict(categories=categories)
        )
    else:
        _write_json(
            folder / f'instances_{split}.json',
            base | dict(annotations=records.instances, categories=categories),
        )


def _write_dataset(
    folder: Path,
    card: dict[str, Any],
    config: SceneConfig,
    workers: int,
    progress: bool,
) -> None:
    (folder / 'annotations').mkdir()
    instances = {}
    total = sum(card['images'].values())
    bar = tqdm(total=total, unit='image', disable=not progress)
    with bar, _mapper(workers) as run:
        for split in SPLITS:
            (folder / split).mkdir()
            count = card['images'][split]
            jobs = [
                _Job(
                    folder,
                    split,
                    range(start, min(start + _CHUNK, count)),
                    card['seed'],
                    config,
                    tuple(card.get(_DOMAINS, ())) if split == 'unlabeled' else (),
                )
                for start in range(0, count, _CHUNK)
            ]
            everything = _Records([], [], [])
            for records in run(_write_images, jobs):
                everything.images += records.images
                everything.instances += records.instances
                everything.captions += records.captions
                bar.update(len(records.images))
            instances[split] = len(everything.instances)
            _write_annotations(
                folder / 'annotations', split, everything, config.class_names
            )
    text = json.dumps(card | dict(instances=instances), indent=2)
    (folder / CARD_FILE).write_text(text + '\n')


def _same_dataset(out: Path, card: dict[str, Any], overwrite: bool) -> bool:
    """Whether ``out`` holds what is asked for; raises if it is in the way."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        held = json.loads((out / CARD_FILE).read_text())
        ours = held.get('generator') == GENERATOR
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(
            f'{out} exists and is no shapes dataset (no readable {CARD_FILE} of '
            f'{GENERATOR}); choose another folder'
        )
    held.pop('instances', None)  # counted once all is drawn
    differs = [key for key in held | card if held.get(key) != card.get(key)]
    if not differs:
        return True
    if not overwrite:
        told = '; '.join(
            f'{k} {held.get(k)} there, {card.get(k)} asked' for k in differs
        )
        raise FileExistsError(
            f'{out} holds another shapes dataset ({told}); '
            'choose another folder or overwrite it'
        )
    known = {*SPLITS, 'annotations', CARD_FILE, PREVIEW_FILE}
    foreign = sorted(path.name for path in out.iterdir() if path.name not in known)
    if foreign:
        raise FileExistsError(
            f'{out} also holds {", ".join(foreign)}, which overwriting would '
            'delete; move that away first'
        )
    return False


def generate_dataset(
    out: str | Path,
    train: int = 1000,
    val: int = 200,
    unlabeled: int = 2000,
    seed: int = 0,
    config: SceneConfig | None = None,
    unlabeled_domains: Sequence[str] = (),
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> bool:
    """Write a dataset of scenes in the COCO layout.

    The same arguments give the same bytes in every file, whatever the number of
    workers. (Other versions of numpy, OpenCV or zlib, or another kind of CPU,
    may round a pixel differently or compress it otherwise.) It is written to a
    folder aside that is renamed at the end, so ``out`` is whole or not there.

    Args:
        out (str | Path): The folder to make. It gets ``train/``, ``val/``,
            ``unlabeled/``, ``annotations/`` and ``dataset.json``.
        train (int): Images with instances and captions. Defaults to 1000.
        val (int): The same, for evaluation. Defaults to 200.
        unlabeled (int): Images with captions only. Defaults to 2000.
        seed (int): Not negative. Defaults to 0.
        config (SceneConfig, optional): Defaults to ``SceneConfig()``.
        unlabeled_domains (Sequence[str]): Domains with which the images without
            labels take turns. Defaults to that of ``config`` for all.
        workers (int): Processes. Defaults to 1.
        overwrite (bool): Replace another shapes dataset. Defaults to False.
        progress (bool): Show a progress bar. Defaults to False.

    Returns:
        bool: False if the very same dataset was there already.

    Raises:
        ValueError: If a number is out of its range.
        FileExistsError: If something else is in the way.
    """
    out = Path(out).resolve()
    config = config or SceneConfig()
    images = dict(train=train, val=val, unlabeled=unlabeled)
    for name, value in images.items():
        if not 0 <= value <= _MAX_IMAGES:
            raise ValueError(f'{name} is {value}; choose 0 to {_MAX_IMAGES} images')
    if not any(images.values()):
        raise ValueError('train, val and unlabeled are all 0; nothing to write')
    if workers < 1:
        raise ValueError(f'workers is {workers}; at least 1')
    if seed < 0:
        raise ValueError(f'seed is {seed}; it must not be negative')
    card: dict[str, Any] = dict(
        generator=GENERATOR,
        generator_version=GENERATOR_VERSION,
        seed=seed,
        config=config.to_dict(),
        images=images,
    )
    if isinstance(unlabeled_domains, str):
        raise ValueError(f'unlabeled_domains={unlabeled_domains!r} is no list of names')
    if unlabeled_domains:
        card[_DOMAINS] = [check_domain(domain) for domain in unlabeled_domains]
    if _same_dataset(out, card, overwrite):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f'.{out.name}.', dir=out.parent))
    try:
        # One level down, because mkdtemp's own folder is closed to others
        (aside / 'new').mkdir()
        _write_dataset(aside / 'new', card, config, workers, progress)
        if out.exists():
            out.rename(aside / 'old')
        (aside / 'new').rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True
