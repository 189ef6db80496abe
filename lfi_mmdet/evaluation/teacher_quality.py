"""How good the maps of a teacher are, layer by layer, against ground-truth masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample, SampleList
from scipy.stats import bootstrap, norm
from torch import Tensor

from lfi_mmdet.structures import InteractionTargets

from .map_scores import ImageMasks, MapScores, presence_auc, score_maps

RESAMPLES = 1000
#: Bounds the memory of the bootstrap, in numbers held at once
_NUMBERS_AT_ONCE = 10_000_000


@dataclass
class Estimate:
    """A mean over a dataset and how far it can be trusted.

    Attributes:
        value: The mean.
        low: Lower end of its 95% interval, by bootstrap over images; None for a
            single image.
        high: Upper end.
        error: Standard error, by the same bootstrap; None for a single image.
        chance: What a map that looks everywhere alike would get.
        num_images: Images that it is made of.
        num_rows: (image, class) rows that it is made of.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None
    chance: float
    num_images: int
    num_rows: int

    def beats_chance(self, among: int = 1) -> bool:
        """Whether it is above chance with 97.5% confidence.

        Args:
            among: Number of estimates of which the best are picked: the more there
                are, the higher luck alone gets (Bonferroni).
        """
        if self.error is None:
            return False
        return self.value - norm.isf(0.025 / among) * self.error > self.chance


@dataclass
class LayerQuality:
    """One layer of one reading; None where a dataset or a teacher does not tell.

    Attributes:
        reading: Name of the reading.
        layer: Name of the layer, perhaps with a head.
        pointing: Share of (image, class) rows in which the cell with the peak of the
            map has its centre on an object of the class; chance is the area.
        pointing_multi: The same for images of two classes or more.
        specific_pointing: Share of the way from a map that points at objects as often
            but is blind to their class (0) to one that always points at the right
            class (1), see :func:`specific_pointing`; for images of two classes or
            more.
        inside_named: Share of the map on objects of the class.
        inside_others: Share of the map on objects of other classes, for images of two
            classes or more.
        specificity: ``inside_named / (inside_named + inside_others)`` of a row; chance
            is the same of their areas.
        presence_auc: Within an image, how often the log mass of a class that it shows
            is above that of one that it does not show; averaged over images.
        score_auc: The same for the teacher's own scores, which are those of all layers.
        most: The highest pointing that the grid allows: the share of rows in which
            objects of the class cover the centre of a cell at all.
    """

    reading: str
    layer: str
    pointing: Estimate | None = None
    pointing_multi: Estimate | None = None
    specific_pointing: Estimate | None = None
    inside_named: Estimate | None = None
    inside_others: Estimate | None = None
    specificity: Estimate | None = None
    presence_auc: Estimate | None = None
    score_auc: Estimate | None = None
    most: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return asdict(self)


METRICS = tuple(f.name for f in fields(LayerQuality) if 'Estimate' in str(f.type))


@dataclass
class _Part:
    """What one image adds to a mean: sums over its rows.

    Attributes:
        total: Of the values, (L,).
        weight: What they are divided by.
        chance: Of the values by chance.
        rows: Number of rows.
    """

    total: np.ndarray
    weight: float
    chance: float
    rows: int


class TeacherQuality:
    """Adds up, batch by batch, what :class:`LayerQuality` tells.

    Args:
        reading: Name of the reading.
        layer_names: Names of the L layers.
        num_classes: Texts 0 to ``num_classes - 1`` are those of the labels.
    """

    def __init__(
        self, reading: str, layer_names: Sequence[str], num_classes: int
    ) -> None:
        self.reading, self.layer_names = reading, list(layer_names)
        self.num_classes = num_classes
        self.num_images = 0
        self._reached: list[bool] = []
        self._parts: dict[str, list[_Part]] = defaultdict(list)

    def add(self, targets: InteractionTargets, data_samples: SampleList) -> None:
        """Add a batch.

        Args:
            targets: All texts of B images, as ``compact=False`` returns them. Only
                those marked as present were read and are judged: ``present='all'``
                asks for all.
            data_samples: B data samples with masks.

        Raises:
            ValueError: If the targets are a selection of texts, their layers are not
                those named, or there are objects without masks.
        """
        if targets.texts is not None:
            raise ValueError(
                'these targets are a selection of texts; ask the teacher with '
                'compact=False'
            )
        if targets.maps.shape[1] != len(self.layer_names):
            raise ValueError(
                f'the targets have {targets.maps.shape[1]} layers, but the teacher '
                f'names {len(self.layer_names)}: {self.layer_names}'
            )
        targets = targets.map(torch.Tensor.cpu)
        for image, sample in enumerate(data_samples):
            self._add_image(targets, image, sample)
            self.num_images += 1

    def _add_image(
        self, targets: InteractionTargets, image: int, sample: DetDataSample
    ) -> None:
        objects = ImageMasks.of(sample)
        asked = targets.present[image, : self.num_classes]
        labels = [label for label in objects.labels if asked[label]]
        if labels:
            named, others = objects.select(labels)
            scores = score_maps(targets.maps[image][:, labels], named, others)
            self._add_maps(scores, multi=len(objects.labels) > 1)
        present = torch.zeros(self.num_classes, dtype=torch.bool)
        present[objects.labels] = True
        for name, values in (
            ('presence_auc', targets.log_mass),
            ('score_auc', targets.scores),
        ):
            if values is None:
                continue
            own = values[image][..., : self.num_classes][..., asked]
            auc = presence_auc(own, present[asked])
            if auc is not None:
                total = auc.expand(len(self.layer_names)).numpy()
                part = _Part(total, weight=1, chance=0.5, rows=int(asked.sum()))
                self._parts[name].append(part)

    def _add_maps(self, scores: MapScores, multi: bool) -> None:
        self._reached += (scores.hit_chance > 0).tolist()
        self._add_rows('pointing', scores.hit, scores.hit_chance)
        self._add_rows('inside_named', scores.inside, scores.area)
        if not multi:
            return
        self._add_rows('pointing_multi', scores.hit, scores.hit_chance)
        self._add_rows('inside_others', scores.others, scores.others_area)
        excess, room = specific_pointing(scores)
        self._add_rows('specific_pointing', excess, torch.zeros_like(room), room)
        self._add_rows('specificity', *specificity(scores))

    def _add_rows(
        self, name: str, values: Tensor, chance: Tensor, weight: Tensor | None = None
    ) -> None:
        """Add an image's rows: (L, R), (R,) and what they are divided by, (R,)."""
        weight = torch.ones_like(chance) if weight is None else weight
        rows = int((weight > 0).sum())
        if rows:
            total = values.sum(-1).numpy()
            part = _Part(total, float(weight.sum()), float(chance.sum()), rows)
            self._parts[name].append(part)

    def result(self, resamples: int = RESAMPLES) -> list[LayerQuality]:
        """Means and intervals, one entry per layer.

        Args:
            resamples: Of the bootstrap; 0 leaves out the intervals.
        """
        estimates = {name: self._estimates(name, resamples) for name in METRICS}
        most = sum(self._reached) / len(self._reached) if self._reached else None
        return [
            LayerQuality(
                self.reading,
                layer,
                most=most,
                **{name: estimates[name][i] for name in METRICS},
            )
            for i, layer in enumerate(self.layer_names)
        ]

    def _estimates(self, name: str, resamples: int) -> list[Estimate | None]:
        parts = self._parts[name]
        if not parts:
            return [None] * len(self.layer_names)
        totals = np.stack([part.total for part in parts], 1)
        weights = np.array([part.weight for part in parts])
        chance = sum(part.chance for part in parts) / weights.sum()
        rows = sum(part.rows for part in parts)
        estimates: list[Estimate | None] = []
        for total in totals:
            value = float(total.sum() / weights.sum())
            spread = interval(total, weights, resamples)
            estimates.append(Estimate(value, *spread, float(chance), len(parts), rows))
        return estimates


def specific_pointing(scores: MapScores) -> tuple[Tensor, Tensor]:
    """Pointing at the named class beyond what finding any object gives.

    A map that finds objects but is blind to their class points at the named one in
    proportion to its share s of the area of all objects. The excess over that is
    ``hit - s * hit_any``; at best it is ``1 - s``.

    Returns:
        The excess (L, R), and how large it can be, (R,); both 0 where no cell has its
        centre on an object.
    """
    share = scores.hit_chance / scores.any_chance.clamp(min=1e-12)
    room = torch.where(scores.any_chance > 0, 1 - share, 0.0)
    return scores.hit - share * scores.hit_any, room


def specificity(scores: MapScores) -> tuple[Tensor, Tensor, Tensor]:
    """Share of what a map has on objects that it has on those of the named class.

    A map that has nothing on any object gets what chance gives.

    Returns:
        The share (L, R); that of the areas, (R,); and 1 for the rows that count, in
        which both classes of objects cover something, (R,), others are 0 in all three.
    """
    counts = ((scores.area > 0) & (scores.others_area > 0)).double()
    total = (scores.area + scores.others_area).clamp(min=1e-12)
    chance = scores.area / total * counts
    mass = scores.inside + scores.others
    share = torch.where(mass > 0, scores.inside / mass.clamp(min=1e-30), chance)
    return share * counts, chance, counts


def interval(
    totals: np.ndarray, weights: np.ndarray, resamples: int = RESAMPLES
) -> tuple[float | None, float | None, float | None]:
    """95% interval of ``totals.sum() / weights.sum()`` by bootstrap over images.

    Args:
        totals: Per image, (n,).
        weights: Per image, (n,), above 0.
        resamples: How often images are drawn.

    Returns:
        Both ends (percentiles) and the standard error, or three times None for fewer
        than two images.
    """
    if len(totals) < 2 or not resamples:
        return None, None, None

    def ratio(total: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
        return total.sum(axis) / weight.sum(axis)

    found = bootstrap(
        (totals, weights),
        ratio,
        n_resamples=resamples,
        batch=max(1, _NUMBERS_AT_ONCE // len(totals)),
        paired=True,
        vectorized=True,
        method='percentile',
        random_state=np.random.default_rng(0),  # same images, same interval
    )
    ends = found.confidence_interval
    return float(ends.low), float(ends.high), float(found.standard_error)
