"""Gives the backbone of a detector its queries, as a config key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.registry import MODELS

from lfi_mmdet.models.backbones import InteractionBackbone, QueryMixin

#: Parts of a detector that may say how many classes there are
HEADS = ('bbox_head', 'roi_head', 'mask_head', 'panoptic_head')


def with_queries(model: Mapping[str, Any], interaction: Mapping[str, Any]) -> dict:
    """The config of a detector's backbone with queries.

    Args:
        model: Config of the detector.
        interaction: Arguments of :func:`InteractionBackbone` but ``backbone``. Without
            ``num_queries`` there is one per class of the heads.

    Raises:
        TypeError: If they are no configs, or ``interaction`` names another backbone.
        ValueError: If the heads do not tell the number of classes.
    """
    backbone = model.get('backbone')
    if not isinstance(backbone, Mapping) or 'type' not in backbone:
        raise TypeError(f'model.backbone={backbone!r} is not a config with a "type"')
    if not isinstance(interaction, Mapping):
        raise TypeError(
            f'model.interaction={interaction!r} is no dict, such as '
            'dict(num_queries=80); dict() takes one query per class'
        )
    taken = sorted({'type', 'backbone'} & set(interaction))
    if taken:
        raise TypeError(
            f'model.interaction has {taken}, which come from model.backbone; leave '
            'them out'
        )
    kind = backbone['type']
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if found is InteractionBackbone or (
        isinstance(found, type) and issubclass(found, QueryMixin)
    ):
        raise TypeError(
            f'model.interaction: model.backbone.type={kind!r} has queries of its own; '
            'leave model.interaction out'
        )
    settings = dict(interaction)
    if 'num_queries' not in settings:
        settings['num_queries'] = class_count(model)
    return dict(type='InteractionBackbone', backbone=dict(backbone), **settings)


def class_count(model: Mapping[str, Any]) -> int:
    """Number of classes that the heads of a detector tell apart.

    Args:
        model: Config of the detector.

    Raises:
        ValueError: If they do not say, or not the same.
    """
    found = {count for head in HEADS for count in _class_counts(model.get(head))}
    if len(found) != 1:
        raise ValueError(
            f'the heads of the detector tell {sorted(found) or "no"} numbers of '
            'classes; give model.interaction=dict(num_queries=...), one per class'
        )
    return found.pop()


def _class_counts(head: Any) -> Iterator[int]:
    if isinstance(head, Mapping):
        if 'num_things_classes' in head:
            yield head['num_things_classes'] + head.get('num_stuff_classes', 0)
            return
        if isinstance(head.get('num_classes'), int):
            yield head['num_classes']
        for name in HEADS:
            yield from _class_counts(head.get(name))
    elif isinstance(head, (list, tuple)):
        for part in head:
            yield from _class_counts(part)
