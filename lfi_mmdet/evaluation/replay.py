"""A teacher that repeats what another one said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmdet.structures import SampleList
from torch import Tensor, nn

from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets


class ReplayTeacher:
    """Gives the same targets to every batch, from half-precision tensors on the CPU.

    Args:
        teacher: Is asked once and then let go.
        batch: Batch out of the data preprocessor.
        preprocessor: That data preprocessor.
    """

    network = None

    def __init__(
        self, teacher: FrozenTeacher, batch: dict[str, Any], preprocessor: nn.Module
    ) -> None:
        self.class_names = teacher.class_names
        targets = teacher(batch['inputs'], batch['data_samples'], preprocessor)
        self.targets = targets.map(
            lambda value: value.cpu().half() if value.is_floating_point() else value
        )

    def __call__(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        preprocessor: nn.Module,
        compact: bool = True,
    ) -> InteractionTargets:
        """The targets, see :class:`FrozenTeacher`."""

        def move(value: Tensor) -> Tensor:
            value = value.to(batch_inputs.device, non_blocking=True)
            return value.float() if value.dtype == torch.float16 else value

        return self.targets.map(move)

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Nothing to move."""
