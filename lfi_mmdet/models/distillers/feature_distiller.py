"""Compares what student and teacher return: the competitors of LFI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from lfi_mmdet.registry import build_part
from lfi_mmdet.structures import (
    InteractionSpec,
    InteractionTargets,
    InteractionTrace,
    valid_patches,
)

from ..losses.dense import DenseLoss, DensePair
from ..teachers.base import FrozenTeacher
from .base import Distiller
from .target_grid import resample_tokens


@MODELS.register_module()
class FeatureDistiller(Distiller):
    """Bring the teacher's dense tokens onto the student's grid and apply losses.

    What LFI is measured against: same teacher, same images, but the student's output is
    compared with the teacher's, patch by patch, region by region or as relations.
    Neither queries nor labels are needed. Tokens are resampled bilinearly over the
    unpadded area of each image, finer ones averaged, as :func:`resample_maps` does.

    Args:
        student: What the backbone records.
        token_dims: Channels of each kind of tokens that the teacher has.
        losses: Configs of :class:`DenseLoss` by short name; the name appears in the log
            as ``loss_kd_<name>``. None switches one off.
        tokens: Kind of tokens: ``'tower'``, as they come out of the image tower, or
            ``'joint'``, in the joint space of images and texts. None: ``'joint'`` if a
            loss needs classes, else ``'tower'``.
        token_layer: Which of the layers of tokens is taught.
        output: Which of the outputs of the backbone learns.
        schedule: Keyword arguments of :class:`LossSchedule`.
    """

    needs_queries = False

    def __init__(
        self,
        student: InteractionSpec,
        token_dims: Mapping[str, int],
        losses: dict[str, dict | None],
        tokens: str | None = None,
        token_layer: int = -1,
        output: int = -1,
        schedule: dict | None = None,
    ) -> None:
        super().__init__(schedule)
        built = {
            name: build_part(cfg, DenseLoss, f'distiller.losses.{name}')
            for name, cfg in losses.items()
            if cfg is not None
        }
        if not built:
            raise ValueError(
                'distiller.losses names no loss; set model.teacher=None '
                'to train the student alone'
            )
        classes = [name for name, loss in built.items() if loss.needs_classes]
        self.wants_tokens = tokens or ('joint' if classes else 'tower')
        if classes and self.wants_tokens != 'joint':
            raise ValueError(
                f'distiller.tokens={tokens!r}: distiller.losses.{classes[0]} compares '
                "tokens with classes, for which they must be 'joint'"
            )
        if self.wants_tokens not in token_dims:
            raise ValueError(
                f'distiller.tokens={self.wants_tokens!r} is not among the dense tokens '
                f'of this teacher; choose from {sorted(token_dims)}'
            )
        for loss in built.values():
            loss.connect(
                self._output_of(student, output), token_dims[self.wants_tokens]
            )
        regions = [loss for loss in built.values() if loss.needs_regions]
        self.needs_regions = bool(regions)
        self.num_regions = max((loss.num_regions for loss in regions), default=0)
        self.token_layer, self.output = token_layer, output
        self.losses = nn.ModuleDict(built)

    def _output_of(self, student: InteractionSpec, output: int) -> int:
        """Channels of the output that learns; notes its stride."""
        self.stride: int | None = None
        count = len(student.output_dims)
        if not count:
            return student.embed_dims
        if not -count <= output < count:
            raise ValueError(
                f'distiller.output={output}: the backbone has {count} outputs'
            )
        self.stride = student.output_strides[output]
        return student.output_dims[output]

    @staticmethod
    def ask(teacher: FrozenTeacher) -> dict[str, Any]:
        """Its dense tokens.

        Raises:
            ValueError: If it has none.
        """
        if not teacher.token_dims:
            raise ValueError(
                f'FeatureDistiller needs dense tokens, which {type(teacher).__name__} '
                'does not give; choose CLIPTeacher, SigLIPTeacher or CoCaTeacher, not '
                'from a cache and not in an ensemble'
            )
        return dict(token_dims=dict(teacher.token_dims))

    @property
    def loss_names(self) -> list[str]:
        """``loss_kd_*``."""
        return [f'loss_kd_{name}' for name in self.losses]

    def read_outputs(self) -> list[int]:
        """The only output that is looked at."""
        return [self.output]

    def align(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets,
        img_shapes: Sequence[tuple[int, int]],
        patch_size: tuple[int, int],
    ) -> DensePair:
        """Bring both sides onto the student's grid; see :class:`Distiller`.

        Raises:
            ValueError: If the teacher gave no tokens, for other images, or a layer or
                output is asked for that is not there.
        """
        student = self._student(trace)
        tokens = targets.tokens
        if tokens is None:
            raise ValueError(
                'the teacher gave no dense tokens although wants_tokens='
                f'{self.wants_tokens!r} asked for them'
            )
        if len(tokens) != len(student):
            raise ValueError(
                f'the teacher gave tokens of {len(tokens)} images for a batch of '
                f'{len(student)}'
            )
        if not -tokens.shape[1] <= self.token_layer < tokens.shape[1]:
            raise ValueError(
                f'distiller.token_layer={self.token_layer}: the teacher gives '
                f'{tokens.shape[1]} layers of tokens'
            )
        h, w = student.shape[2:]
        if self.stride is not None:
            patch_size = (self.stride, self.stride)
        # that of the cells that queries look at, which may be others
        valid = trace.valid if (h, w) == trace.grid else None
        if valid is None:
            # nothing is padded, but the backbone rounds up to whole patches: where the
            # centre of the last ones is outside, the teacher has nothing to say
            valid = valid_patches(img_shapes, (h, w), patch_size, student.device)
        taught = resample_tokens(
            tokens[:, self.token_layer].permute(0, 3, 1, 2),
            img_shapes,
            (h * patch_size[0], w * patch_size[1]),
            (h, w),
            valid,
        )
        pair = DensePair(
            student=_precise(student),
            teacher=taught.unflatten(2, (h, w)),
            valid=valid.unflatten(1, (h, w)),
            class_embeds=targets.class_embeds,
        )
        if self.needs_regions:
            assert self.regions is not None, 'checked by build_distiller'
            boxes, logits = self.regions(trace.outputs, img_shapes, self.num_regions)
            high, wide = patch_size
            boxes = boxes.to(pair.teacher.dtype)
            # column by column: a tensor of sizes would have to be sent to the device
            image, x1, y1, x2, y2 = boxes.unbind(1)
            pair.boxes = torch.stack(
                [image, x1 / wide, y1 / high, x2 / wide, y2 / high], 1
            )
            pair.logits = _precise(logits)
        return pair

    def _student(self, trace: InteractionTrace) -> Tensor:
        count = len(trace.outputs)
        if not -count <= self.output < count:
            raise ValueError(
                f'distiller.output={self.output}: the backbone has {count} outputs'
            )
        return trace.outputs[self.output]

    def forward(
        self,
        trace: InteractionTrace,
        targets: InteractionTargets | None,
        img_shapes: Sequence[tuple[int, int]],
        patch_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Compute ``loss_kd_*``; see :class:`Distiller`."""
        student = self._student(trace)
        if targets is None:
            parts = [student, *self.parameters()]
            zero = sum(part.flatten()[:1].float().sum() for part in parts) * 0.0
            return {f'loss_kd_{name}': zero for name in self.losses}
        pair = self.align(trace, targets, img_shapes, patch_size)
        factor = self.schedule.current()
        with torch.autocast(student.device.type, enabled=False):
            return {
                f'loss_kd_{name}': factor * loss(pair)
                for name, loss in self.losses.items()
            }


def _precise(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
