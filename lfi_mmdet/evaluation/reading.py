"""What teacher and student look at in a batch, outside of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor, nn

from lfi_mmdet.models.detectors import LFIMixin
from lfi_mmdet.models.distillers import InteractionDistiller
from lfi_mmdet.models.losses.base import InteractionPair


@dataclass
class InteractionReading:
    """One batch as both sides saw it. Shapes as in :mod:`lfi_mmdet.structures`.

    Attributes:
        inputs: The normalised, padded images, (B, 3, H, W).
        data_samples: Their B data samples, with ground truth in the coordinates of
            ``inputs``.
        pairs: The supervised layers on the student's grid.
        layers: (block of the student, layer of the teacher), one per pair.
        present: Bool (B, K).
        grid: (H, W) of the student's patches.
        valid: Bool (B, N), False on padded patches.
        patch_size: Side of a student's patch in pixels.
    """

    inputs: Tensor
    data_samples: SampleList
    pairs: list[InteractionPair]
    layers: list[tuple[int, int]]
    present: Tensor
    grid: tuple[int, int]
    valid: Tensor
    patch_size: int


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each module is in its mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def read_interactions(model: LFIMixin, batch: dict) -> InteractionReading:
    """Run teacher and student over a batch; padding is handled as in training.

    Args:
        model: Detector with a teacher and a distiller.
        batch: Batch of a dataloader such as :func:`interaction_dataloader`'s.

    Raises:
        ValueError: If the detector has no teacher, or a distiller that compares no
            interactions.
    """
    if model.teacher is None or model.distiller is None:
        raise ValueError(
            'model.teacher is None: there is nothing to compare the queries with; '
            'choose a config with a teacher'
        )
    parts = model.distiller.parts
    distiller = next((d for d in parts if isinstance(d, InteractionDistiller)), None)
    if distiller is None:
        raise ValueError(
            f'model.distiller is a {type(model.distiller).__name__}, which compares no '
            'interactions; choose a config with InteractionDistiller'
        )
    detector: Any = model  # the mixin's type knows nothing of the detector's parts
    backbone, preprocessor = detector.backbone, detector.data_preprocessor
    with evaluation_mode(detector):
        batch = preprocessor(batch, training=False)
        inputs, samples = batch['inputs'], batch['data_samples']
        targets = model.teacher(inputs, samples, preprocessor, compact=False)
        shapes = [sample.img_shape for sample in samples]
        patch = backbone.patch_size
        with backbone.interactions(shapes) as trace:
            backbone(inputs)
        pairs, present = distiller.align(trace, targets, shapes, (patch, patch))
    valid = trace.valid
    if valid is None:
        count = trace.grid[0] * trace.grid[1]
        valid = torch.ones(len(samples), count, dtype=torch.bool, device=inputs.device)
    blocks = backbone.interaction_spec.layers
    return InteractionReading(
        inputs=inputs,
        data_samples=samples,
        pairs=pairs,
        layers=[(blocks[s], t) for s, t in distiller.pairs],
        present=present,
        grid=trace.grid,
        valid=valid,
        patch_size=patch,
    )


def class_masks(sample: DetDataSample) -> dict[int, Tensor]:
    """Union of the ground-truth masks of each class, bool (height, width) in pixels.

    Returns:
        By label; empty if the ground truth has no masks.
    """
    instances = sample.gt_instances
    if 'masks' not in instances or not len(instances):
        return {}
    height, width = sample.img_shape[:2]
    masks = torch.from_numpy(instances.masks.to_ndarray()).bool()[:, :height, :width]
    labels = instances.labels.cpu()
    return {
        int(label): masks[labels == label].any(0) for label in labels.unique().tolist()
    }
