"""Interaction queries beside any backbone that returns feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import MODELS
from torch import nn

from lfi_mmdet.models.utils.derived_class import derived_class
from lfi_mmdet.registry import find_part

from .query_mixin import QueryMixin
from .stage_interaction import StageInteractionMixin


def interaction_class(backbone: type) -> type:
    """The class of a backbone with queries, made once.

    Args:
        backbone: Class of a backbone.
    """
    doc = f':class:`{backbone.__name__}` with queries, see :func:`InteractionBackbone`.'
    return derived_class(StageInteractionMixin, backbone, 'Interaction', doc)


@MODELS.register_module()
def InteractionBackbone(  # noqa: N802 - a type in configs
    backbone: dict,
    num_queries: int,
    embed_dims: int = 256,
    grid_stride: int = 16,
    stages: Sequence[int] | None = None,
    interaction_heads: int = 8,
    interaction_channels: int | None = None,
    carry: bool = True,
    query_attention: bool = True,
    feedback: bool = False,
    text_embeddings: str | None = None,
    interaction_cp: bool = True,
    channels: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    init_cfg: dict | None = None,
) -> nn.Module:
    """Any registered backbone of mmdet or mmpretrain, with interaction queries.

    One interaction per output, shared queries, and a projection per output; without
    feedback the backbone computes what it computes alone, and the queries are only
    there for the teacher. Keys in checkpoints are those of the backbone alone, plus
    ``queries`` and ``interaction*``, so that pretrained weights load unchanged.

    Args:
        backbone: Config of the backbone, ``init_cfg`` included.
        num_queries: K, one per text.
        embed_dims: Channels of a query.
        grid_stride: Pixels per cell of the grid that queries look at, for all outputs.
        stages: Indices of the outputs that are read; None for all.
        interaction_heads: Heads of the interaction.
        interaction_channels: Channels of its queries and keys; None for half of
            ``embed_dims``.
        carry: Carry attention logits from output to output.
        query_attention: Let queries attend to one another.
        feedback: Let patches of each output read from the queries.
        text_embeddings: File (K, C) of text embeddings that the queries start from.
        interaction_cp: Recompute the interactions' activations in the backward pass.
        channels: Channels of each output; None to find out by a trial.
        strides: Pixels per cell of each output; None to find out by a trial.
        init_cfg: Instead of that of ``backbone``.

    Returns:
        The backbone, of a class that derives from its own.

    Raises:
        TypeError: If ``backbone`` names no backbone, or one with queries.
        ValueError: If the outputs are no feature maps, or their strides do not fit.
    """
    kind = find_part(backbone, nn.Module, 'backbone.backbone')
    if issubclass(kind, QueryMixin):
        raise TypeError(
            f'backbone.backbone.type={kind.__name__} has queries of its own'
        )
    settings = {key: value for key, value in backbone.items() if key != 'type'}
    if init_cfg is not None:
        settings['init_cfg'] = init_cfg
    interaction = dict(
        num_queries=num_queries,
        embed_dims=embed_dims,
        grid_stride=grid_stride,
        stages=stages,
        interaction_heads=interaction_heads,
        interaction_channels=interaction_channels,
        carry=carry,
        query_attention=query_attention,
        feedback=feedback,
        text_embeddings=text_embeddings,
        interaction_cp=interaction_cp,
        channels=channels,
        strides=strides,
    )
    return interaction_class(kind)(interaction=interaction, **settings)
