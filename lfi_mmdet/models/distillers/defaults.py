"""What is distilled where a config does not say."""

from __future__ import annotations

from typing import Any

from lfi_mmdet.structures import InteractionSpec

from ..teachers.base import FrozenTeacher
from .layer_mapping import map_layers


def default_distiller(student: InteractionSpec, teacher: FrozenTeacher) -> dict:
    """The config of a distiller with the losses of the paper.

    Those of ``configs/lfi/mask-rcnn_vit-s_lfi_coco.py``, as far as the teacher allows:
    no relation loss without relations, no dynamics with a single layer.

    Args:
        student: What the backbone records.
        teacher: The teacher.
    """
    mapping = 'uniform'
    losses: dict[str, Any] = dict(
        attention=dict(type='InteractionAttentionLoss', loss_weight=0.5)
    )
    if teacher.has_relations:
        losses['relation'] = dict(type='InteractionRelationLoss', loss_weight=0.5)
    layers = len(student.layers), teacher.num_layers
    pairs = map_layers(mapping, *layers) if min(layers) else []
    # with a single layer of the teacher there is no change to follow
    if len({taught for _, taught in pairs}) > 1:
        losses['dynamics'] = dict(type='InteractionDynamicsLoss', loss_weight=0.1)
    return dict(
        type='InteractionDistiller',
        layer_mapping=mapping,
        schedule=dict(warmup=500),
        losses=losses,
    )
