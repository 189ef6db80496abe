"""A teacher that looks up the answer: for diagnosis only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from lfi_mmdet.structures import InteractionTargets

from .base import FrozenTeacher
from .corruption import Corruption
from .presence import present_texts

#: Share of the image that a class covers at least, as far as its log mass tells
LEAST_SHARE = 1e-8


@MODELS.register_module()
class GroundTruthTeacher(FrozenTeacher):
    """Blurred ground-truth masks as attention maps, sharper from layer to layer.

    It tells whether queries can learn to look where they are told to, and with faults
    in measured doses, how good a teacher has to be. It is no vision-language model,
    knows nothing beyond the labels, and no result obtained with it says anything about
    distillation.

    Faults are drawn per image and class, by ``seed``, ``img_id`` and the label: an
    image has the same ones in every epoch, process and cache, in the same places of
    what it shows, however it is augmented, and what a small dose hits, a larger one
    hits too.

    Args:
        grid_size: Side of the maps, which cover the unpadded image.
        blur: Standard deviation of the blur per layer, in cells of the grid,
            from the first layer to the last.
        floor: Share of uniform attention in every map.
        class_names: Classes; None takes them from the dataset.
        noise: Share of every map that is replaced by a random smooth distribution.
        confusion: Probability that a class of an image gets the masks of another class
            of the image or, if it is alone, those of a random ellipse.
        missing: Probability that a class of an image is not found: its map is uniform,
            and it is not present (with ``present='all'`` it is).
        scores: Whether the targets tell scores: 1 for the classes of the image that
            are not missing, 0 for all others. ``present='teacher'`` needs no such
            switch.
        seed: Another seed, other faults.
        present: Which classes count as present, see :class:`FrozenTeacher`.
        presence: With ``present='teacher'``, see :class:`FrozenTeacher`.
    """

    PRESENT = ('ground_truth', 'teacher', 'all')

    def __init__(
        self,
        grid_size: int = 32,
        blur: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        floor: float = 0.02,
        class_names: Sequence[str] | None = None,
        noise: float = 0.0,
        confusion: float = 0.0,
        missing: float = 0.0,
        scores: bool = False,
        seed: int = 0,
        present: str = 'ground_truth',
        presence: dict | None = None,
    ) -> None:
        super().__init__(view=dict(size=grid_size), present=present, presence=presence)
        if not blur or min(blur) < 0:
            raise ValueError(f'teacher.blur={blur} is not a list of lengths >= 0')
        self.corruption = Corruption(noise, confusion, missing, seed)
        self.grid_size, self.blur, self.floor = grid_size, tuple(blur), floor
        self.wants_scores |= scores
        if class_names is not None:
            self.set_class_names(class_names)

    @property
    def num_layers(self) -> int:
        """One layer per entry of ``blur``."""
        return len(self.blur)

    @property
    def needs_labels(self) -> bool:
        """They are what it looks up."""
        return True

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Nothing to encode: query k belongs to label k."""

    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """This teacher reads annotations; see :meth:`targets`."""
        raise TypeError('GroundTruthTeacher has no network that could see images')

    def present_in(self, data_samples: SampleList) -> Tensor | None:
        """The classes of each image but the missing ones, bool (B, T) on the CPU."""
        present = super().present_in(data_samples)
        if present is not None and self.present == 'ground_truth':
            present &= self._found(data_samples)
        return present

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor | None,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """Rasterise the masks of each present class, see :class:`FrozenTeacher`.

        The log mass of a class is the log of the share of the image that it covers, and
        log(1e-8) if it covers nothing.
        """
        found = self._found(data_samples)
        scores = found.float()
        if present is None:
            present = self.presence(scores)
        cover = torch.stack(
            [
                self._cover(sample) * known[:, None, None]
                for sample, known in zip(data_samples, found)
            ]
        )
        device = batch_inputs.device
        cover = cover.to(device)
        maps = torch.stack([self._normalise(cover, sigma) for sigma in self.blur], 1)
        if self.corruption.noise:
            maps = torch.stack(
                [
                    self.corruption.add_noise(one, sample, _indices(asked))
                    for one, sample, asked in zip(maps, data_samples, present)
                ]
            )
        log_mass = cover.mean((-2, -1)).clamp(min=LEAST_SHARE).log()
        return InteractionTargets(
            maps=maps,
            present=present,
            log_mass=log_mass[:, None].repeat(1, self.num_layers, 1),
            scores=scores.to(device) if self.wants_scores else None,
        )

    def _found(self, data_samples: SampleList) -> Tensor:
        """Classes that images show and that are not missing, bool (B, T), CPU."""
        found = present_texts('ground_truth', data_samples, self.num_texts)
        for row, sample in zip(found, data_samples):
            missing = self.corruption.missing_classes(
                sample, _indices(row), self.num_texts
            )
            row[missing] = False
        return found

    def _cover(self, sample: DetDataSample) -> Tensor:
        """Share of each cell that each class seems to cover, (T, side, side)."""
        side = self.grid_size
        classes = torch.zeros(self.num_texts, side, side)
        height, width = sample.img_shape[:2]
        labels = sample.gt_instances.labels.tolist()
        masks = self._mask_array(sample)[:, :height, :width]
        for label, mask in zip(labels, masks):
            cover = F.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), side)
            classes[label] = torch.maximum(classes[label], cover[0])
        return self.corruption.mix_up(classes, sample, sorted(set(labels)))

    @staticmethod
    def _mask_array(sample: DetDataSample) -> np.ndarray:
        instances = sample.gt_instances
        if 'masks' not in instances:
            raise ValueError(
                'GroundTruthTeacher needs instance masks: add '
                "dict(type='LoadAnnotations', with_bbox=True, with_mask=True) "
                'to the pipeline'
            )
        return instances.masks.to_ndarray()

    def _normalise(self, union: Tensor, sigma: float) -> Tensor:
        """Blur and turn into distributions over the grid; (B, T, side, side)."""
        blurred = union
        if sigma > 0:
            kernel = 2 * min(int(3 * sigma + 0.5), self.grid_size - 1) + 1
            blurred = gaussian_blur(union, kernel, sigma)
        total = blurred.sum((-2, -1), keepdim=True)
        uniform = torch.full_like(blurred, 1 / self.grid_size**2)
        peaked = torch.where(total > 0, blurred / total.clamp(min=1e-12), uniform)
        return (1 - self.floor) * peaked + self.floor * uniform


def _indices(marks: Tensor) -> list[int]:
    return marks.nonzero().flatten().tolist()
