"""A teacher that looks up the answer: for diagnosis only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from lfi_mmdet.structures import InteractionTargets

from .base import FrozenTeacher


@MODELS.register_module()
class GroundTruthTeacher(FrozenTeacher):
    """Blurred ground-truth masks as attention maps, sharper from layer to layer.

    It tells whether queries can learn to look where they are told to. It is no
    vision-language model, knows nothing beyond the labels, and no result obtained
    with it says anything about distillation.

    Args:
        grid_size: Side of the maps, which cover the unpadded image.
        blur: Standard deviation of the blur per layer, in cells of the grid,
            from the first layer to the last.
        floor: Share of uniform attention in every map.
        class_names: Classes; None takes them from the dataset.
    """

    PRESENT = ('ground_truth',)

    def __init__(
        self,
        grid_size: int = 32,
        blur: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        floor: float = 0.02,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(view=dict(size=grid_size))
        if not blur or min(blur) < 0:
            raise ValueError(f'teacher.blur={blur} is not a list of lengths >= 0')
        self.grid_size, self.blur, self.floor = grid_size, tuple(blur), floor
        if class_names is not None:
            self.set_class_names(class_names)

    @property
    def num_layers(self) -> int:
        """One layer per entry of ``blur``."""
        return len(self.blur)

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Nothing to encode: query k belongs to label k."""

    def interact(self, images: Tensor, present: Tensor) -> InteractionTargets:
        """This teacher reads annotations; see :meth:`targets`."""
        raise TypeError('GroundTruthTeacher has no network that could see images')

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """Rasterise the masks of each present class, see :class:`FrozenTeacher`."""
        side = self.grid_size
        union = torch.zeros(len(data_samples), present.shape[1], side, side)
        for classes, sample in zip(union, data_samples):
            height, width = sample.img_shape[:2]
            instances = sample.gt_instances
            masks = self._mask_array(sample)[:, :height, :width]
            for label, mask in zip(instances.labels.tolist(), masks):
                cover = F.adaptive_avg_pool2d(
                    torch.from_numpy(mask)[None].float(), side
                )
                classes[label] = torch.maximum(classes[label], cover[0])
        union = union.to(batch_inputs.device)
        maps = torch.stack([self._normalise(union, sigma) for sigma in self.blur], 1)
        return InteractionTargets(maps=maps, present=present)

    @staticmethod
    def _mask_array(sample: object) -> np.ndarray:
        instances = sample.gt_instances  # type: ignore[attr-defined]
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
