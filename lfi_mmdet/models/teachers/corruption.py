"""Faults in measured doses for the diagnosis teacher."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from torch import Tensor

#: Waves that a random smooth distribution is made of
NUM_WAVES = 6
#: Most waves from one side of an image to the other
MAX_FREQUENCY = 4.0
#: Standard deviation of the log of a random smooth distribution
ROUGHNESS = 2.0
#: Points per side of a cell at which a random place is rasterised
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Draws:
    """Random numbers of one class in one image, the same in every epoch and process.

    They do not depend on the doses: what a small dose hits, a larger one hits too.

    Attributes:
        missing: Between 0 and 1; the class is missing if it is below the dose.
        confusion: Likewise.
        centre: Centre (x, y) of a random place in the original image, 0 to 1.
        radii: Half-axes (x, y) of that place, an ellipse.
        frequencies: Of the waves, (NUM_WAVES, 2), per image side.
        phases: Of the waves, (NUM_WAVES,), in radians.
        priorities: (T,), in which order other classes are mistaken for this one.
    """

    missing: float
    confusion: float
    centre: np.ndarray
    radii: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray
    priorities: np.ndarray


class Corruption:
    """What is done to the masks of the classes of an image.

    Everything is drawn per image and class, by the seed, ``img_id`` and the label, and
    is laid out in the original image: a flipped or cropped image shows the same faults,
    flipped and cropped.

    Args:
        noise: Share of a map that is replaced by a random smooth distribution.
        confusion: Probability that a class gets the masks of another class of the
            image or, if it is alone, those of a random ellipse.
        missing: Probability that a class is not found at all.
        seed: Another seed, other faults.
    """

    def __init__(
        self, noise: float, confusion: float, missing: float, seed: int
    ) -> None:
        doses = dict(noise=noise, confusion=confusion, missing=missing)
        for name, dose in doses.items():
            if not 0 <= dose <= 1:
                raise ValueError(f'teacher.{name}={dose} is not between 0 and 1')
        if seed < 0:
            raise ValueError(f'teacher.seed={seed} is negative')
        self.noise, self.confusion, self.missing = noise, confusion, missing
        self.seed = seed

    def draw(self, sample: DetDataSample, label: int, num_classes: int) -> Draws:
        """Draw the random numbers of a class in an image.

        Raises:
            ValueError: If the data sample has no ``img_id``.
        """
        image = sample.get('img_id')
        if image is None:
            raise ValueError(
                'noise, confusion and missing classes of GroundTruthTeacher are drawn '
                "per image: put 'img_id' into the meta_keys of PackDetInputs"
            )
        digest = hashlib.sha256(str(image).encode()).digest()
        key = int.from_bytes(digest[:8], 'big')
        random = np.random.default_rng([self.seed, key, label])
        missing, confusion = random.random(2)
        return Draws(
            missing=missing,
            confusion=confusion,
            centre=random.random(2),
            radii=random.uniform(0.1, 0.25, 2),
            frequencies=random.uniform(-MAX_FREQUENCY, MAX_FREQUENCY, (NUM_WAVES, 2)),
            phases=random.uniform(0, 2 * np.pi, NUM_WAVES),
            priorities=random.random(num_classes),
        )

    def missing_classes(
        self, sample: DetDataSample, labels: list[int], num_classes: int
    ) -> list[int]:
        """Those of the classes of an image that are not found."""
        if not self.missing:
            return []
        return [
            label
            for label in labels
            if self.draw(sample, label, num_classes).missing < self.missing
        ]

    def mix_up(self, cover: Tensor, sample: DetDataSample, labels: list[int]) -> Tensor:
        """Give classes the places of others.

        Args:
            cover: Share of each cell that each class covers, (T, side, side).
            sample: The image.
            labels: Its classes.

        Returns:
            The same with classes confused; absent classes stay as they are.
        """
        if not self.confusion:
            return cover
        mixed = cover.clone()
        for label in labels:
            draws = self.draw(sample, label, len(cover))
            if draws.confusion >= self.confusion:
                continue
            others = [other for other in labels if other != label]
            if others:
                mixed[label] = cover[max(others, key=lambda k: draws.priorities[k])]
            else:
                mixed[label] = ellipse(draws, sample, cover.shape[-1]).to(cover)
        return mixed

    def add_noise(
        self, maps: Tensor, sample: DetDataSample, labels: list[int]
    ) -> Tensor:
        """Replace a share of maps.

        Args:
            maps: (L, T, side, side), each sums to 1.
            sample: The image.
            labels: Texts whose maps are changed.
        """
        if not self.noise or not labels:
            return maps
        points = content_points(sample, maps.shape[-1])
        mixed = maps.clone()
        for label in labels:
            draws = self.draw(sample, label, maps.shape[1])
            noise = torch.from_numpy(smooth_distribution(draws, points)).to(maps)
            mixed[:, label] = (1 - self.noise) * maps[:, label] + self.noise * noise
        return mixed


def smooth_distribution(draws: Draws, points: np.ndarray) -> np.ndarray:
    """Evaluate a random smooth distribution.

    Args:
        draws: The waves it is made of.
        points: (x, y) in the original image, (..., 2).

    Returns:
        (...), sums to 1.
    """
    waves = np.cos(2 * np.pi * points @ draws.frequencies.T + draws.phases)
    log_density = ROUGHNESS * np.sqrt(2 / NUM_WAVES) * waves.sum(-1)
    density = np.exp(log_density - log_density.max())
    return density / density.sum()


def ellipse(draws: Draws, sample: DetDataSample, side: int) -> Tensor:
    """Share of each cell that a random ellipse covers, float32 (side, side)."""
    points = content_points(sample, side * SUPERSAMPLING)
    inside = (((points - draws.centre) / draws.radii) ** 2).sum(-1) <= 1
    cover = torch.from_numpy(inside).float()
    return F.avg_pool2d(cover[None], SUPERSAMPLING)[0]


def content_points(sample: Any, side: int) -> np.ndarray:
    """Where the cells of a grid over the unpadded image lie in the original image.

    Args:
        sample: Data sample with ``img_shape`` and ``ori_shape`` and, if more was done
            to the image than one resize and a flip, ``homography_matrix``.
        side: Rows and columns of the grid.

    Returns:
        (x, y) of the cells' centres, from 0 to 1 inside the original image,
        (side, side, 2).

    Raises:
        ValueError: If the data sample does not tell.
    """
    if sample.get('ori_shape') is None:
        raise ValueError(
            'noise and confusion of GroundTruthTeacher stay in their places in the '
            "original image: put 'ori_shape' into the meta_keys of PackDetInputs"
        )
    height, width = sample.img_shape[:2]
    original = np.array(sample.ori_shape[1::-1], float)
    steps = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(steps, steps)
    matrix = sample.get('homography_matrix')
    if matrix is not None:
        pixels = np.stack((x * width, y * height, np.ones_like(x)), -1)
        there = pixels @ np.linalg.inv(np.asarray(matrix, float)).T
        return there[..., :2] / there[..., 2:] / original
    expected = original * np.array(sample.get('scale_factor', (1.0, 1.0))[:2])
    if np.abs(expected - (width, height)).max() > 1.5:
        raise ValueError(
            f'{sample.get("img_path", "an image")} of {sample.ori_shape[:2]} pixels '
            f'was not only resized to {sample.img_shape[:2]}, and noise and confusion '
            "of GroundTruthTeacher cannot follow it: put 'homography_matrix' into the "
            'meta_keys of PackDetInputs'
        )
    direction = sample.get('flip_direction') if sample.get('flip') else None
    if direction in ('horizontal', 'diagonal'):
        x = 1 - x
    if direction in ('vertical', 'diagonal'):
        y = 1 - y
    return np.stack((x, y), -1)
