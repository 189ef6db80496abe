"""A teacher whose every answer tells which image it has seen, and about which text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets

CLASSES = ('cat', 'dog', 'bird')


@MODELS.register_module()
class BrightnessTeacher(FrozenTeacher):
    """Maps, features and scores are functions of the mean brightness and the text."""

    PRESENT = ('ground_truth', 'teacher', 'all')
    num_layers = 2
    feature_dims = 3

    def __init__(self, class_names: Sequence[str] | None = CLASSES, **common) -> None:
        super().__init__(view=dict(size=8, mean=(0,) * 3, std=(1,) * 3), **common)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.freeze(nn.Sequential(nn.Linear(1, 16), nn.BatchNorm1d(16)))
        self.checked: list = []
        if class_names is not None:
            self.set_class_names(class_names)

    def check_dataset(self, dataset) -> None:
        self.checked.append(dataset)

    def encode_texts(self, class_names: Sequence[str]) -> None:
        self.texts = dict(index=1.0 + torch.arange(len(class_names)))

    def interact(self, images, present):
        mean = images.mean((1, 2, 3))[:, None]
        weight = self.network[0].weight
        seen = self.network(mean.to(weight.dtype)).float()
        layer = 1.0 + torch.arange(2.0)[:, None, None]
        phase = seen[:, None, None] * layer * self.texts['index'].float()[:, None]
        scores = (mean > torch.tensor([0.2, 0.5, 0.8])).float()
        return InteractionTargets(
            maps=(3 * phase).sin().softmax(-1).unflatten(-1, (4, 4)),
            present=self.presence(scores) if present is None else present,
            features=phase[..., :3].cos(),
            log_mass=phase[..., 4],
            scores=scores if self.wants_scores else None,
        )


def image_of(value: float, labels: Sequence[int], shape=(16, 16), **meta):
    """An image of one brightness from 0 to 255, and its data sample."""
    meta = dict(img_shape=shape, img_path=f'{value}.jpg', **meta)
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(labels=torch.tensor(labels).long())
    return torch.full((3, *shape), float(value)), sample


def ask(teacher: FrozenTeacher, *images, compact: bool = False) -> InteractionTargets:
    """Ask about a batch of :func:`image_of`; padding has the brightness 77."""
    height = max(pixels.shape[1] for pixels, _ in images)
    width = max(pixels.shape[2] for pixels, _ in images)
    batch = torch.full((len(images), 3, height, width), 77.0)
    for place, (pixels, _) in zip(batch, images):
        place[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return teacher(batch, [sample for _, sample in images], None, compact=compact)
