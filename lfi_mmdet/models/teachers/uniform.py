"""A control: a teacher that knows which texts are present, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionTargets

from .wrapper import TeacherWrapper


@MODELS.register_module()
class UniformTeacher(TeacherWrapper):
    """Looks everywhere alike, whatever it is asked for.

    Which texts are present is still what the teacher inside says. All else is what
    attention without any preference leads to: every map is uniform, and since each text
    then reads the same features, their cosines are all 1. The features themselves are
    one constant vector, so that they tell nothing of the image either, and so are dense
    tokens. If a student gains as much from this teacher as from the one inside, it
    gains from the queries, the losses or the presence of texts, not from where the
    teacher looks.

    Args:
        teacher: Config of the teacher inside.
    """

    def __call__(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        preprocessor: nn.Module,
        compact: bool = True,
    ) -> InteractionTargets:
        """Targets without information; see :class:`FrozenTeacher`."""
        # asked as a whole: a teacher with stored targets has no other way in
        targets = self.inner(batch_inputs, data_samples, preprocessor, compact)
        return without_information(targets)


def without_information(targets: InteractionTargets) -> InteractionTargets:
    """Keep shapes, texts, presence and scores of targets, and nothing else.

    Args:
        targets: Of any teacher; not changed.
    """
    changes: dict[str, Tensor] = {
        'maps': torch.full_like(targets.maps, 1 / targets.maps.shape[-2:].numel())
    }
    for name in ('features', 'tokens'):
        value = getattr(targets, name, None)
        if value is not None:  # unit vectors along the diagonal
            changes[name] = torch.full_like(value, value.shape[-1] ** -0.5)
    if targets.relations is not None:
        changes['relations'] = torch.ones_like(targets.relations)
    if targets.log_mass is not None:
        changes['log_mass'] = torch.zeros_like(targets.log_mass)
    return replace(targets, **changes)
