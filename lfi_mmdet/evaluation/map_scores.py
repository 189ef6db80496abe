"""How well the maps of one image tell its classes apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from torch import Tensor

#: Cells within this share of the maximum are peaks as well, so that a uniform map
#: points everywhere and scores chance, not what happens to lie in its first cell
PEAK_TOLERANCE = 1e-6


@dataclass
class ImageMasks:
    """What an image shows.

    Attributes:
        labels: The C classes it shows, ascending; those of crowds too.
        masks: Bool (C, height, width), the union of the masks of each class.
    """

    labels: list[int]
    masks: Tensor

    @classmethod
    def of(cls, sample: DetDataSample) -> ImageMasks:
        """Take them from a data sample; padding is cut off.

        Raises:
            ValueError: If there are instances without masks.
        """
        height, width = sample.img_shape[:2]
        unions: dict[int, Tensor] = {}
        for name in ('gt_instances', 'ignored_instances'):
            instances = sample.get(name)
            if instances is None or not len(instances):
                continue
            if 'masks' not in instances:
                raise ValueError(
                    f'{sample.get("img_path", "an image")} has objects without masks, '
                    'and a map is judged by whether it lies on them; add '
                    "dict(type='LoadAnnotations', with_bbox=True, with_mask=True) to "
                    'the pipeline of val_dataloader, or take a dataset with masks'
                )
            masks = torch.from_numpy(instances.masks.to_ndarray()).bool()
            for label, mask in zip(instances.labels.tolist(), masks):
                mask = mask[:height, :width]
                unions[label] = unions[label] | mask if label in unions else mask
        labels = sorted(unions)
        if not labels:
            return cls([], torch.zeros(0, height, width, dtype=torch.bool))
        return cls(labels, torch.stack([unions[label] for label in labels]))

    def select(self, labels: list[int]) -> tuple[Tensor, Tensor]:
        """Masks of some classes and, beside each, those of all others.

        Args:
            labels: R of the classes.

        Returns:
            Bool (R, height, width), pixels of the class; and pixels that belong to
            other classes only.
        """
        rows = [self.labels.index(label) for label in labels]
        named = self.masks[rows]
        return named, self.masks.any(0) & ~named


@dataclass
class MapScores:
    """Scores of R rows, the named classes of one image, in L layers.

    Attributes:
        hit: Whether the centre of the cell with the peak lies on an object of the
            named class, (L, R); a share where several cells are the peak.
        hit_any: Whether it lies on any object, (L, R).
        hit_chance: Share of the cells with their centre on the named class, (R,).
        any_chance: Share of the cells with their centre on any object, (R,).
        inside: Share of the map on objects of the named class, (L, R).
        area: Share of the image that they cover, (R,).
        others: Share of the map on objects of other classes, (L, R).
        others_area: Share of the image that they cover, (R,).
    """

    hit: Tensor
    hit_any: Tensor
    hit_chance: Tensor
    any_chance: Tensor
    inside: Tensor
    area: Tensor
    others: Tensor
    others_area: Tensor


def score_maps(maps: Tensor, named: Tensor, others: Tensor) -> MapScores:
    """Lay maps over masks.

    Args:
        maps: (L, R, h, w), each sums to 1 over the grid, which covers the image.
        named: Bool (R, height, width), pixels of the class that a map is about.
        others: Bool (R, height, width), pixels of other classes only.
    """
    maps = maps.double()
    grid = (int(maps.shape[-2]), int(maps.shape[-1]))
    cover, others_cover = (
        F.adaptive_avg_pool2d(masks.double(), grid) for masks in (named, others)
    )
    on_named, on_other = (_at_centres(masks, grid) for masks in (named, others))
    peaks = maps >= maps.amax((-2, -1), keepdim=True) * (1 - PEAK_TOLERANCE)
    peaks = peaks / peaks.sum((-2, -1), keepdim=True)

    def over_grid(values: Tensor) -> Tensor:
        return values.sum((-2, -1))

    return MapScores(
        hit=over_grid(peaks * on_named),
        hit_any=over_grid(peaks * (on_named + on_other)),
        hit_chance=on_named.mean((-2, -1)),
        any_chance=(on_named + on_other).mean((-2, -1)),
        inside=over_grid(maps * cover),
        area=cover.mean((-2, -1)),
        others=over_grid(maps * others_cover),
        others_area=others_cover.mean((-2, -1)),
    )


def _at_centres(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Whether the centre of each cell is on the mask, float64 (R, h, w)."""
    rows, cols = (
        ((torch.arange(count) + 0.5) * length / count).long()
        for count, length in zip(grid, masks.shape[-2:])
    )
    return masks[:, rows][:, :, cols].double()


def presence_auc(scores: Tensor, present: Tensor) -> Tensor | None:
    """How often a class that is there scores higher than one that is not.

    Args:
        scores: (..., T).
        present: Bool (T,).

    Returns:
        (...), from 0 to 1, ties count half; None if all classes are there, or none.
    """
    there, absent = scores[..., present], scores[..., ~present]
    if not there.shape[-1] or not absent.shape[-1]:
        return None
    there, absent = there[..., :, None], absent[..., None, :]
    wins = (there > absent).double() + 0.5 * (there == absent).double()
    return wins.mean((-2, -1))
