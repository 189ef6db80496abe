"""Where the time of a data loader's worker goes, transform by transform."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.runner import set_random_seed
from tqdm import tqdm

from lfi_mmdet.engine.preflight import iter_datasets

from .timing import Spread

#: Name of what comes before the first transform: finding and copying annotations
ANNOTATIONS = 'get_data_info'


class PipelineTimer:
    """Runs the pipeline of a config's training dataset on one image after another.

    Args:
        cfg: Config with ``train_dataloader.dataset``.

    Raises:
        ValueError: If there is not exactly one dataset with a pipeline of its own in
            it, or it is empty.
    """

    def __init__(self, cfg: Config) -> None:
        key = 'train_dataloader.dataset'
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        leaves = list(iter_datasets(dataset, key))
        wrapped = leaves[0][1] is not dataset and hasattr(dataset, 'pipeline')
        if len(leaves) != 1 or wrapped or not hasattr(leaves[0][1], 'pipeline'):
            raise ValueError(
                f'{key}.type={type(dataset).__name__!r} has more than one pipeline or '
                'none; choose a dataset with one, such as CocoDataset'
            )
        self.dataset: Any = leaves[0][1]
        if not len(self.dataset):
            raise ValueError(f'{key} has no images')
        self.transforms = list(self.dataset.pipeline.transforms)
        names = [type(transform).__name__ for transform in self.transforms]
        self.names = [ANNOTATIONS, *names]

    def __len__(self) -> int:
        return len(self.dataset)

    def __call__(self, index: int) -> list[float] | None:
        """Seconds of each of ``names`` for one image; None if it is dropped."""
        start = time.perf_counter()
        results: Any = self.dataset.get_data_info(index)
        times = [time.perf_counter() - start]
        for transform in self.transforms:
            start = time.perf_counter()
            results = transform(results)
            times.append(time.perf_counter() - start)
            if results is None:
                return None
        return times


def time_loaders(
    timers: Sequence[PipelineTimer],
    images: int,
    transform: str,
    seed: int = 0,
    progress: str | None = None,
) -> list[dict[str, Any]]:
    """Time pipelines on the same images, in turns and in this process.

    Every image is loaded once before it is timed, so its file comes from memory; from
    a disk, reading it takes longer, and all transforms are a smaller share.

    Args:
        timers: The pipelines.
        images: How many images, the first of each dataset.
        transform: Whose share is told, by the name of its class.
        seed: Of the first image; all pipelines start from the same random state.
        progress: Title of a progress bar; None for no bar.

    Returns:
        Per pipeline: seconds per image (``seconds``), the share of ``transform`` in
        the whole time (``share``, None if the pipeline has none) and in each image's
        (``shares``), and per transform its mean seconds and share of the whole.

    Raises:
        ValueError: If nothing is to be timed, or all images are dropped.
    """
    images = min([images, *(len(timer) for timer in timers)])
    if images < 1:
        raise ValueError(f'images={images} is less than 1')
    rows: list[list[list[float]]] = [[] for _ in timers]
    for index in tqdm(range(images), progress, ncols=70, disable=progress is None):
        for timer, row in zip(timers, rows):
            for timed in (False, True):
                set_random_seed(seed + index)
                times = timer(index)
                if timed and times is not None:
                    row.append(times)
    if not all(rows):
        raise ValueError(f'the pipeline drops all of the first {images} images')
    return [_summary(timer, row, transform) for timer, row in zip(timers, rows)]


def _summary(
    timer: PipelineTimer, rows: list[list[float]], transform: str
) -> dict[str, Any]:
    totals = [sum(row) for row in rows]
    columns = [sum(column) for column in zip(*rows)]
    whole = sum(totals)
    found = [i for i, name in enumerate(timer.names) if name == transform]
    shares = [sum(row[i] for i in found) / sum(row) for row in rows]
    return dict(
        images=len(rows),
        seconds=Spread(totals).to_dict(),
        transform=transform,
        share=sum(columns[i] for i in found) / whole if found else None,
        shares=Spread(shares).to_dict() if found else None,
        transforms=[
            dict(name=name, mean_s=column / len(rows), share=column / whole)
            for name, column in zip(timer.names, columns)
        ],
    )
