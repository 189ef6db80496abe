"""Several teachers at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from lfi_mmdet.registry import build_part
from lfi_mmdet.structures import InteractionTargets, take_layers

from ..distillers.layer_mapping import map_layers
from .base import FrozenTeacher


@MODELS.register_module()
class EnsembleTeacher(FrozenTeacher):
    """A weighted list of teachers, each with its own view, texts and presence.

    The map of a text is the weighted mean of the maps of those teachers that have the
    text present; its score is that of the scores of all. For the attention loss that
    is the same as a weighted sum of losses, since ``sum_i w_i KL(P_i || A)`` and
    ``KL(sum_i w_i P_i || A)`` differ by a constant. Features become unit vectors, are
    scaled by the root of their weights and put behind one another: cosines between
    them are then the weighted means of the teachers' own.

    Maps are brought onto the finest grid among the teachers (bilinear, renormalised)
    and onto the largest number of layers (:func:`map_layers`, ``'uniform'``).

    Args:
        teachers: Configs of the teachers.
        weights: One positive number per teacher; None for equal ones. Only their
            ratios matter.
        class_names: Classes; None takes them from the dataset.
    """

    def __init__(
        self,
        teachers: Sequence[dict],
        weights: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if not teachers:
            raise ValueError('teacher.teachers is an empty list')
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        if len(weights) != len(teachers) or min(weights) <= 0:
            raise ValueError(
                f'teacher.weights={weights} must be {len(teachers)} positive numbers, '
                'one per entry of teacher.teachers'
            )
        self.teachers: list[FrozenTeacher] = [
            build_part(cfg, FrozenTeacher, f'model.teacher.teachers.{index}')
            for index, cfg in enumerate(teachers)
        ]
        self.weights = [weight / sum(weights) for weight in weights]
        super().__init__(view=dict(size=1))
        if any(teacher.reading == 'gradient' for teacher in self.teachers):
            self.reading = 'gradient'  # so that gradients can be taken
        if not all(teacher.has_relations for teacher in self.teachers) and any(
            teacher.has_relations for teacher in self.teachers
        ):
            bare = [
                type(teacher).__name__
                for teacher in self.teachers
                if not teacher.has_relations
            ]
            raise ValueError(
                f'teacher.teachers: {bare} have no features, but others have; either '
                'all or none must, so that losses know what to compare'
            )
        names = class_names
        for teacher in self.teachers:
            names = names or teacher.class_names
        if names is not None:
            self.set_class_names(names)

    @property
    def num_layers(self) -> int:
        """The largest number of layers among the teachers."""
        return max(teacher.num_layers for teacher in self.teachers)

    @property
    def num_texts(self) -> int:
        """The number all teachers agree on."""
        return self.teachers[0].num_texts

    @property
    def more_texts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the first teacher, which all share."""
        return self.teachers[0].more_texts

    @property
    def feature_dims(self) -> int | None:
        """Sum of the widths; None if a teacher has no features."""
        total = 0
        for teacher in self.teachers:
            if teacher.feature_dims is None:
                return None
            total += teacher.feature_dims
        return total

    @property
    def needs_labels(self) -> bool:
        """Whether a teacher needs labels."""
        return any(teacher.needs_labels for teacher in self.teachers)

    @property
    def has_relations(self) -> bool:
        """Whether all teachers tell cosines between features."""
        return all(teacher.has_relations for teacher in self.teachers)

    @property
    def has_mass(self) -> bool:
        """No: the masses of different teachers have no common scale."""
        return False

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Give every teacher its texts.

        Raises:
            ValueError: If a teacher has other texts already, or another number.
        """
        for index, teacher in enumerate(self.teachers):
            if teacher.class_names is None:
                teacher.set_class_names(class_names)
            elif teacher.class_names != tuple(class_names):
                odd = sorted(set(teacher.class_names) ^ set(class_names))
                raise ValueError(
                    f'teacher.teachers.{index} has other class names than the rest: '
                    f'they differ in {odd or "the order"}'
                )
        more = [teacher.more_texts for teacher in self.teachers]
        if len(set(more)) > 1:
            raise ValueError(
                f'teacher.teachers have the more_texts {more}; give all the same'
            )
        counts = [teacher.num_texts for teacher in self.teachers]
        if len(set(counts)) > 1:
            raise ValueError(
                f'teacher.teachers have {counts} texts; give all the same max_free'
            )

    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """Each teacher makes its own view; see :meth:`targets`."""
        raise TypeError('EnsembleTeacher has no view of its own; call it on a batch')

    def present_in(self, data_samples: SampleList) -> Tensor | None:
        """Texts that are present for any teacher; None if one decides by itself."""
        found = [teacher.present_in(data_samples) for teacher in self.teachers]
        known = [mask for mask in found if mask is not None]
        if len(known) < len(found):
            return None
        return torch.stack(known).any(0)

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor | None,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """Ask all teachers and put their answers together."""
        answers = []
        for teacher in self.teachers:
            found = teacher(batch_inputs, data_samples, preprocessor, compact=False)
            answers.append(
                found if found.texts is None else found.spread(self.num_texts)
            )
        return self.combine(answers)

    def combine(self, answers: Sequence[InteractionTargets]) -> InteractionTargets:
        """Put the targets of all teachers for one batch together."""
        layers = self.num_layers
        grid = [max(a.maps.shape[axis] for a in answers) for axis in (-2, -1)]
        present = torch.stack([answer.present for answer in answers])
        # nothing here waits for the device, as lists as indices would
        own = torch.tensor(self.weights).to(present.device, non_blocking=True)
        own = own[:, None, None]
        shares = own * present
        total = shares.sum(0)
        # (teachers, B, T); texts that nobody has present keep the plain weights
        shares = torch.where(total > 0, shares / total.clamp(min=1e-12), own)

        maps: Tensor | float = 0.0
        features, relations = [], []
        for answer, share in zip(answers, shares):
            index = [t for _, t in map_layers('uniform', layers, answer.maps.shape[1])]
            maps = maps + share[:, None, :, None, None] * take_layers(
                resize_maps(answer.maps, (grid[0], grid[1])), index
            )
            root = share.sqrt()[:, None]
            if answer.features is not None:
                unit = F.normalize(take_layers(answer.features, index), dim=-1)
                features.append(root[..., None] * unit)
                cosines: Tensor | None = unit @ unit.transpose(-1, -2)
            else:
                kept = answer.relations
                cosines = None if kept is None else take_layers(kept, index)
            if cosines is not None:
                relations.append(root[..., None] * cosines * root[..., None, :])
        assert isinstance(maps, Tensor)
        scores = [answer.scores for answer in answers if answer.scores is not None]
        whole = len(features) == len(answers)
        return InteractionTargets(
            maps=maps,
            present=present.any(0),
            features=torch.cat(features, -1) if whole else None,
            relations=None
            if whole or len(relations) < len(answers)
            else torch.stack(relations).sum(0),
            scores=(own * torch.stack(scores)).sum(0)
            if len(scores) == len(answers)
            else None,
        )

    # -- contracts ---------------------------------------------------------------------
    def check_dataset(self, dataset: Any) -> None:
        """Let every teacher check the training dataset."""
        for teacher in self.teachers:
            teacher.check_dataset(dataset)

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Let every teacher follow the detector."""
        for teacher in self.teachers:
            teacher.apply_(fn)

    def verify(self) -> None:
        """Verify the weights of every teacher."""
        for teacher in self.teachers:
            teacher.verify()

    def weights_hash(self) -> str:
        """SHA-256 over the hashes of all teachers."""
        hashes = ''.join(teacher.weights_hash() for teacher in self.teachers)
        return hashlib.sha256(hashes.encode()).hexdigest()


def resize_maps(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring maps (B, L, T, h, w) onto a finer grid; they sum to 1 again."""
    if tuple(maps.shape[-2:]) == grid:
        return maps
    flat = F.interpolate(
        maps.flatten(1, 2), size=grid, mode='bilinear', align_corners=False
    )
    resized = flat.unflatten(1, maps.shape[1:3])
    return resized / resized.sum((-2, -1), keepdim=True).clamp(min=1e-30)
