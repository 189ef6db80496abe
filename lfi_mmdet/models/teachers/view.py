"""The teacher's input, made from the student's own batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import SampleList
from torch import Tensor

from ..utils.preprocessor import plain_preprocessor

#: The statistics all OpenAI and most open_clip models were trained with (0-1 RGB)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: Names of the accepted ``teacher_view`` choices
VIEWS = ('resize', 'tiles')


class TeacherView:
    """Turn the student's augmented batch into the teacher's input.

    Undoes the student's normalisation, drops the padding, resizes what is left of
    each image (antialiased bicubic) and normalises for the teacher, so that teacher
    and student always look at the same pixels.

    With ``teacher_view='tiles'`` the image is resized to a canvas of several inputs
    and cut into overlapping ones, so that the teacher sees more detail; its targets
    are put together again by :func:`.tiles.stitch_targets`.

    Args:
        size: Side of the teacher's square input in pixels, or its (height, width).
        mean: Teacher's mean, for RGB values between 0 and 1.
        std: Teacher's standard deviation, likewise.
        teacher_view: ``'resize'``: one input per image; ``'tiles'``: several.
        tiles: Rows and columns of tiles.
        overlap: Pixels of the teacher's input by which neighbouring tiles overlap; a
            multiple of its patch size.

    Attributes:
        tiles: Rows and columns of inputs per image, (1, 1) with ``'resize'``.
        canvas: Height and width that the whole image is resized to.

    Raises:
        ValueError: If an argument is none of the choices or does not fit the size.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        teacher_view: str = 'resize',
        tiles: Sequence[int] = (2, 2),
        overlap: int = 0,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self._check(teacher_view, tiles, overlap)
        self.teacher_view, self.overlap = teacher_view, overlap
        self.tiles = (tiles[0], tiles[1]) if teacher_view == 'tiles' else (1, 1)
        self.canvas = tuple(
            count * side - overlap * (count - 1)
            for count, side in zip(self.tiles, self.size)
        )
        self._stats: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _check(self, teacher_view: str, tiles: Sequence[int], overlap: int) -> None:
        if teacher_view not in VIEWS:
            raise ValueError(
                f'teacher.teacher_view={teacher_view!r} is not known; choose from '
                f'{VIEWS}'
            )
        if len(tiles) != 2 or not all(isinstance(n, int) and n > 0 for n in tiles):
            raise ValueError(
                f'teacher.tiles={tiles!r} must be (rows, columns), each at least 1'
            )
        if not isinstance(overlap, int) or not 0 <= overlap < min(self.size):
            raise ValueError(
                f'teacher.overlap={overlap!r} must be whole pixels from 0 to less than '
                f"the teacher's input, which is {self.size[0]}x{self.size[1]}"
            )
        if overlap and teacher_view == 'resize':
            raise ValueError(
                f"teacher.overlap={overlap} needs teacher.teacher_view='tiles': one "
                'view has nothing to overlap with'
            )

    @property
    def num_tiles(self) -> int:
        """Inputs per image."""
        return self.tiles[0] * self.tiles[1]

    def per_tile(self, values: Tensor | None) -> Tensor | None:
        """Repeat what is known of each image, (B, ...), for (B * num_tiles, ...)."""
        if values is None or self.num_tiles == 1:
            return values
        return values.repeat_interleave(self.num_tiles, 0)

    def overlap_in_patches(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Patches by which tiles overlap, along rows and columns.

        Args:
            grid: (h, w), the patches of one input.

        Raises:
            ValueError: If the overlap is not a whole number of patches.
        """
        counts = [self.overlap * n / side for n, side in zip(grid, self.size)]
        if any(count != int(count) for count in counts):
            patch = ' x '.join(f'{side / n:g}' for n, side in zip(grid, self.size))
            raise ValueError(
                f"teacher.overlap={self.overlap} is no multiple of the teacher's "
                f'patches of {patch} pixels, so that tiles cannot be put together'
            )
        return int(counts[0]), int(counts[1])

    @torch.no_grad()
    def __call__(
        self, batch_inputs: Tensor, data_samples: SampleList, preprocessor: Any
    ) -> Tensor:
        """Make the teacher's inputs; nothing waits for the device.

        Args:
            batch_inputs: (B, 3, H, W) of any floating-point type, as the student's
                preprocessor returns them.
            data_samples: B data samples, of which ``img_shape`` is read.
            preprocessor: The student's data preprocessor.

        Returns:
            (B * num_tiles, 3, *size), float32, on the device of ``batch_inputs``; the
            tiles of an image follow each other row by row.
        """
        shapes = [(s.img_shape[0], s.img_shape[1]) for s in data_samples]
        preprocessor = plain_preprocessor(preprocessor)
        # what follows is linear per channel, so it is done on the fewer pixels
        images = self._resize(batch_inputs, shapes)
        if getattr(preprocessor, '_enable_normalize', False):
            images = images * preprocessor.std + preprocessor.mean
        if not getattr(preprocessor, '_channel_conversion', False):
            images = images.flip(1)  # mmdet loads BGR and this student keeps it
        mean, std = self._stats_on(images.device)
        return self._cut((images.clamp(0, 255) / 255 - mean) / std)

    def _resize(self, batch: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Resize the unpadded images, one batch per shape: (B, 3, *canvas)."""
        members: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(shapes):
            members.setdefault(shape, []).append(index)
        resized: dict[int, Tensor] = {}
        for (height, width), indices in members.items():
            # an index tensor would have to be sent to the device
            same = [batch[i : i + 1, :, :height, :width] for i in indices]
            if len(members) == 1:
                same = [batch[:, :, :height, :width]]
            images = F.interpolate(
                (torch.cat(same) if len(same) > 1 else same[0]).float(),
                size=self.canvas,
                mode='bicubic',
                antialias=True,
                align_corners=False,
            )
            if len(members) == 1:
                return images
            resized.update(zip(indices, images))
        return torch.stack([resized[i] for i in range(len(shapes))])

    def _cut(self, canvas: Tensor) -> Tensor:
        """Cut (B, 3, *canvas) into (B * num_tiles, 3, *size)."""
        if self.num_tiles == 1:
            return canvas
        height, width = self.size
        tiles = canvas.unfold(2, height, height - self.overlap)
        tiles = tiles.unfold(3, width, width - self.overlap)
        return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)

    def _stats_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, sent to a device only once."""
        if device not in self._stats:
            with torch.inference_mode(False):
                self._stats[device] = (self.mean.to(device), self.std.to(device))
        return self._stats[device]
