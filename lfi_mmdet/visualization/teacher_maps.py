"""Pictures of what a teacher looks at, one column per reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from lfi_mmdet.evaluation.map_scores import ImageMasks
from lfi_mmdet.evaluation.teacher_trial import TeacherBatch

from .figure import displayed_image
from .interaction_maps import MapPanel, MapRow


@dataclass
class TeacherPicture:
    """One image with the maps of its classes.

    Attributes:
        image: RGB, uint8, (height, width, 3).
        objects: The C classes it shows.
        maps: By reading, (L, C, h, w).
    """

    image: np.ndarray
    objects: ImageMasks
    maps: dict[str, Tensor] = field(default_factory=dict)


class TeacherPictures:
    """Keeps the maps of the first images that show something.

    Args:
        count: How many images.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pictures: list[TeacherPicture] = []
        self._seen: dict[str, int] = {}

    def add(self, reading: str, batch: TeacherBatch, preprocessor: nn.Module) -> None:
        """Look at a batch; every reading has to see the same images in order."""
        for inputs, sample, maps in zip(
            batch.inputs, batch.data_samples, batch.targets.maps
        ):
            position = self._seen.get(reading, 0)
            if position >= self.count:
                return
            objects = ImageMasks.of(sample)
            if not objects.labels:
                continue
            if position == len(self.pictures):
                image = displayed_image(inputs, sample, preprocessor)
                self.pictures.append(TeacherPicture(image, objects))
            self.pictures[position].maps[reading] = maps[:, objects.labels].cpu()
            self._seen[reading] = position + 1

    def rows(
        self,
        columns: Sequence[tuple[str, int, str]],
        class_names: Sequence[str],
        max_classes: int = 2,
    ) -> list[MapRow]:
        """Rows of :func:`draw_interaction_maps`, one per class and image.

        Args:
            columns: Reading, index of the layer, and title of each column.
            class_names: Names of the texts.
            max_classes: Classes per image, at most; the largest in the image.
        """
        rows = []
        for picture in self.pictures:
            areas = picture.objects.masks.sum((-2, -1)).tolist()
            largest = sorted(range(len(areas)), key=lambda c: (-areas[c], c))
            for c in largest[:max_classes]:
                rows.append(
                    MapRow(
                        image=picture.image,
                        label=class_names[picture.objects.labels[c]],
                        mask=picture.objects.masks[c].numpy(),
                        panels=[
                            MapPanel(title, self._enlarged(picture, reading, layer, c))
                            for reading, layer, title in columns
                        ],
                    )
                )
        return rows

    @staticmethod
    def _enlarged(
        picture: TeacherPicture, reading: str, layer: int, index: int
    ) -> np.ndarray:
        """A map over the image, in units of the uniform map."""
        values = picture.maps[reading][layer, index].float()
        relative = values * values.numel()
        shape = picture.image.shape[:2]
        enlarged = F.interpolate(
            relative[None, None], size=shape, mode='bilinear', align_corners=False
        )
        return enlarged[0, 0].numpy()
