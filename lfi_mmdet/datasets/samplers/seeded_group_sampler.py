"""Mixed batches of images of like shape, the same ones after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmdet.datasets.samplers import GroupMultiSourceSampler
from mmdet.registry import DATA_SAMPLERS

from lfi_mmdet.engine.preflight import InputError


@DATA_SAMPLERS.register_module()
class SeededGroupMultiSourceSampler(GroupMultiSourceSampler):
    """``GroupMultiSourceSampler`` that draws the groups by the run's seed.

    mmdet's own draws each batch's group (tall or wide images) from NumPy's global
    state. A resumed run, which skips the batches before its checkpoint, then sees other
    images than an uninterrupted one, and every process trains on another group. It
    also waits forever if a source has no image of a group.

    Args:
        *args: For ``GroupMultiSourceSampler``.
        **kwargs: The same.

    Raises:
        InputError: If one source has images of a group, and another one has none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group, name in enumerate(('tall', 'wide')):
            sizes = [source[group] for source in self.group2size_per_source]
            if any(sizes) and not all(sizes):
                raise InputError(
                    'train_dataloader.sampler: the datasets to mix have '
                    f'{" and ".join(map(str, sizes))} {name} images; without images of '
                    'that shape in one of them choose MultiSourceSampler'
                )

    def __iter__(self) -> Iterator[int]:
        """Indices into the concatenated datasets, batch by batch, without end."""
        random = np.random.default_rng(self.seed)
        while True:
            group = random.choice(len(self.group_ratio), p=self.group_ratio)
            for source, count in enumerate(self.num_per_source):
                members = self.group2inds_per_source[source][group]
                order = self.group_source2inds[group][source]
                for _ in range(count):
                    yield members[next(order)] + self.cumulative_sizes[source]
