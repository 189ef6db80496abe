"""Makes and describes the data of a setting."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lfi_mmdet.datasets.shapes import SceneConfig, generate_dataset
from lfi_mmdet.engine.preflight import InputError, check_file

from .hashes import file_digest, value_digest
from .plan import Setting, label_text

#: Arguments of the generator beside those of a scene
_DATASET_KEYS = ('train', 'val', 'unlabeled', 'unlabeled_domains', 'seed')
_SCENE_KEYS = tuple(field.name for field in fields(SceneConfig))
_CARD = 'dataset.json'
_TRAIN_FILE = 'annotations/instances_train.json'


@dataclass(frozen=True)
class EvaluationSet:
    """One set to evaluate on.

    Args:
        folder: Root of the data.
        ann_file: COCO instances, relative to it.
        img: Folder of the images, relative to it.
    """

    folder: Path
    ann_file: str = 'annotations/instances_val.json'
    img: str = 'val/'


@dataclass(frozen=True)
class SettingData:
    """Where the data of a setting lies.

    Args:
        folder: Root of the data, in the layout of ``tools/make_shapes.py``.
        train_file: COCO instances of all labelled images, relative to it.
        val: The set that is evaluated during the training.
        tests: Sets that are evaluated at the end.
    """

    folder: Path
    train_file: str
    val: EvaluationSet
    tests: Mapping[str, EvaluationSet]

    @property
    def labels(self) -> Path:
        """COCO instances of all labelled images."""
        return self.folder / self.train_file


def prepare_data(setting: Setting, work: Path, workers: int = 1) -> SettingData:
    """Generate the scenes of a setting, unless they are there, and check its files.

    Args:
        setting: Of the study.
        work: Work dir of the study; scenes go to ``data/`` and a digest of what they
            are made from, so settings with the same scenes share them.
        workers: Processes that draw.

    Raises:
        InputError: If an argument of the generator does not fit or a file is missing.
    """
    where = f'settings.{setting.source}'
    if setting.scenes is not None:
        folder = _scenes(setting.scenes, f'{where}.scenes', work, workers)
    else:
        folder = _folder(str(setting.folder), f'{where}.folder')
    tests = {}
    for name, test in setting.tests.items():
        key = f'{where}.tests.{name}'
        if 'scenes' in test:
            # as the setting's own, but for what is given, and for evaluation only
            merged = {**(setting.scenes or {}), 'train': 0, 'unlabeled': 0}
            merged.pop('unlabeled_domains', None)
            root = _scenes({**merged, **test['scenes']}, key, work, workers)
        else:
            root = _folder(str(test.get('folder', folder)), f'{key}.folder')
        files = {k: test[k] for k in ('ann_file', 'img') if k in test}
        tests[name] = EvaluationSet(root, **files)
    data = SettingData(
        folder=folder,
        train_file=setting.train.get('ann_file', _TRAIN_FILE),
        val=EvaluationSet(folder, **setting.val),
        tests=tests,
    )
    check_file(str(data.labels), f'{where}: labels')
    for name, test_set in {'val': data.val, **tests}.items():
        check_file(str(test_set.folder / test_set.ann_file), f'{where}: set {name}')
        if not (test_set.folder / test_set.img).is_dir():
            raise InputError(
                f'{where}: set {name}: no folder {test_set.folder / test_set.img}; '
                'name that of the images with the key img'
            )
    return data


def folder_names(data: SettingData, work: Path) -> dict[str, str]:
    """What stands for folders of data in digests and messages, on any machine.

    The name has a digest of the annotations, so that other data in the place of these
    is another config. Generated scenes need none: they lie in the work dir, in a folder
    whose name says what they are.

    Args:
        data: Of a setting.
        work: Work dir of the study, resolved.
    """
    files: dict[Path, list[Path]] = {data.folder: [data.labels]}
    for place in (data.val, *data.tests.values()):
        files.setdefault(place.folder, []).append(place.folder / place.ann_file)
    return {
        str(folder): f'DATA-{value_digest([file_digest(f) for f in named])[:12]}'
        for folder, named in files.items()
        if not folder.is_relative_to(work)
    }


def draw_labels(data: SettingData, setting: Setting, seed: int, work: Path) -> Path:
    """Write the annotation file of the images that are labelled under a seed.

    The images of a seed are put in one random order, of which every amount takes the
    first so many: a smaller subset lies within a larger one, and all arms share both.

    Returns:
        The file; the whole one if all images are labelled.

    Raises:
        InputError: If there are fewer images than asked for.
    """
    if setting.labels == 1.0 and not isinstance(setting.labels, int):
        return data.labels
    digest = file_digest(data.labels)[:12]
    folder = work / 'labels' / f'{setting.source}-{digest}' / f'seed{seed}'
    path = folder / f'instances_{label_text(setting.labels)}.json'
    if path.is_file():
        return path
    content = json.loads(data.labels.read_text())
    chosen = choose_images(
        [image['id'] for image in content['images']],
        setting.labels,
        seed,
        f'settings.{setting.source}.labels',
    )
    kept = dict(
        content,
        images=[image for image in content['images'] if image['id'] in chosen],
        annotations=[a for a in content['annotations'] if a['image_id'] in chosen],
    )
    rest = {key: value for key, value in content.items() if key != 'annotations'}
    rest['images'] = [i for i in content['images'] if i['id'] not in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    # the one that is looked for comes last
    _write(rest_file(path), rest)
    _write(path, kept)
    return path


def rest_file(labels: Path) -> Path:
    """The images that a subset leaves without labels, as a file without instances."""
    return labels.with_name(labels.name.replace('instances_', 'image_info_rest_'))


def choose_images(
    ids: list[int], amount: float | int, seed: int, where: str
) -> set[int]:
    """Choose the labelled images: a share (rounded up) or a number of them.

    Raises:
        InputError: If there are too few.
    """
    count = amount if isinstance(amount, int) else math.ceil(amount * len(ids) - 1e-9)
    if count > len(ids):
        raise InputError(f'{where}: {count} images asked for, {len(ids)} are there')
    order = np.random.default_rng([seed, 20]).permutation(sorted(ids))
    return {int(i) for i in order[:count]}


def data_digest(data: SettingData, labels: Path) -> dict[str, str]:
    """Digests of what a run learns from and of what it is evaluated on.

    The pixels of generated scenes follow from their card; of other images only the
    annotations are read, which name them.
    """
    sets = {'val': data.val, **data.tests}
    return {
        'train': value_digest([file_digest(labels), _card(data.folder)]),
        **{
            name: value_digest([file_digest(s.folder / s.ann_file), _card(s.folder)])
            for name, s in sets.items()
        },
    }


def _card(folder: Path) -> Any:
    path = folder / _CARD
    return json.loads(path.read_text()) if path.is_file() else None


def _scenes(given: Mapping[str, Any], where: str, work: Path, workers: int) -> Path:
    unknown = [key for key in given if key not in (*_DATASET_KEYS, *_SCENE_KEYS)]
    if unknown:
        raise InputError(
            f'{where}: {unknown} are no arguments of the generator; choose from '
            f'{", ".join((*_DATASET_KEYS, *_SCENE_KEYS))}'
        )
    choices = {key: value for key, value in given.items() if key in _SCENE_KEYS}
    dataset = {key: value for key, value in given.items() if key in _DATASET_KEYS}
    if isinstance(choices.get('classes'), list):
        choices['classes'] = tuple(choices['classes'])
    try:
        config = SceneConfig(**choices)
        out = work / 'data' / f'scenes-{value_digest([dataset, config.to_dict()])[:12]}'
        generate_dataset(out, config=config, workers=workers, progress=True, **dataset)
    except (ValueError, TypeError) as error:
        raise InputError(f'{where}: {error}') from error
    return out


def _folder(text: str, where: str) -> Path:
    path = Path(os.path.expandvars(text)).expanduser()
    if not path.is_dir():
        raise InputError(f'{where}: {text} is no folder')
    return path.resolve()


def _write(path: Path, content: Any) -> None:
    aside = path.with_name(f'.{path.name}.{os.getpid()}')
    aside.write_text(json.dumps(content))
    os.replace(aside, path)
