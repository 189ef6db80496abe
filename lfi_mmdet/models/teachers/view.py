"""The teacher's input, made from the student's own batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import SampleList
from torch import Tensor

#: The statistics all OpenAI and most open_clip models were trained with (0-1 RGB)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class TeacherView:
    """Turn the student's augmented batch into the teacher's input.

    Undoes the student's normalisation, drops the padding, resizes what is left of
    each image to one size (antialiased bicubic) and normalises for the teacher, so
    that teacher and student always look at the same pixels.

    Args:
        size: Side of the teacher's square input in pixels, or its (height, width).
        mean: Teacher's mean, for RGB values between 0 and 1.
        std: Teacher's standard deviation, likewise.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    @torch.no_grad()
    def __call__(
        self, batch_inputs: Tensor, data_samples: SampleList, preprocessor: Any
    ) -> Tensor:
        """Return (B, 3, *size), float32, on the device of ``batch_inputs``."""
        images = batch_inputs.float()
        if getattr(preprocessor, '_enable_normalize', False):
            images = images * preprocessor.std + preprocessor.mean
        if not getattr(preprocessor, '_channel_conversion', False):
            images = images.flip(1)  # mmdet loads BGR and this student keeps it
        views = [
            F.interpolate(
                image[None, :, : sample.img_shape[0], : sample.img_shape[1]],
                size=self.size,
                mode='bicubic',
                antialias=True,
                align_corners=False,
            )
            for image, sample in zip(images, data_samples)
        ]
        rgb = torch.cat(views).clamp(0, 255) / 255
        return (rgb - self.mean.to(rgb)) / self.std.to(rgb)
