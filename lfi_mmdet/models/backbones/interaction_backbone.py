"""Interaction queries beside any backbone that returns feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor, nn

from lfi_mmdet.registry import find_part
from lfi_mmdet.structures import InteractionSpec

from ..utils import QueryInteraction
from .query_mixin import QueryMixin

if TYPE_CHECKING:
    from mmengine.model import BaseModule as Backbone
else:
    Backbone = object  # whichever backbone follows in the bases


class StageInteractionMixin(QueryMixin, Backbone):
    """Queries that read the outputs of a backbone; put it before the backbone.

    Use :func:`InteractionBackbone`, which makes such a class of any registered one. The
    backbone keeps its class, its keys in checkpoints, and what it computes: its outputs
    are read one after the other, on one grid, by the same queries. With feedback,
    patches of each output read from the queries before the neck sees them.

    Args:
        *args: For the backbone.
        interaction: Arguments of :func:`InteractionBackbone` but ``backbone``.
        **kwargs: For the backbone.
    """

    def __init__(self, *args: Any, interaction: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_queries(**interaction)

    def _add_queries(
        self,
        num_queries: int,
        embed_dims: int,
        grid_stride: int,
        stages: Sequence[int] | None,
        interaction_heads: int,
        interaction_channels: int | None,
        carry: bool,
        query_attention: bool,
        feedback: bool,
        text_embeddings: str | None,
        interaction_cp: bool,
        channels: Sequence[int] | None,
        strides: Sequence[int] | None,
    ) -> None:
        if num_queries < 1:
            raise ValueError(
                f'backbone.num_queries={num_queries}: InteractionBackbone without '
                'queries is the backbone alone; use that'
            )
        self.num_queries, self.embed_dims = num_queries, embed_dims
        self.patch_size, self.text_embeddings = grid_stride, text_embeddings
        self.feedback = feedback
        self.output_dims, self.output_strides = self._outputs(channels, strides)
        self.interaction_stages = self._stages(stages)
        for stage in self.interaction_stages:
            stride = self.output_strides[stage]
            if grid_stride % stride and stride % grid_stride:
                raise ValueError(
                    f'backbone.grid_stride={grid_stride} is neither a multiple nor a '
                    f'divisor of the stride {stride} of output {stage}'
                )
        self.queries = nn.Parameter(torch.zeros(num_queries, embed_dims))
        self.interaction = QueryInteraction(
            embed_dims,
            interaction_heads,
            interaction_channels or embed_dims // 2,
            carry=carry and len(self.interaction_stages) > 1,
            query_attention=query_attention,
            feedback=feedback,
            with_cp=interaction_cp,
        )
        dims = [self.output_dims[stage] for stage in self.interaction_stages]
        self.interaction_in = nn.ModuleList(nn.Linear(c, embed_dims) for c in dims)
        self.interaction_out = nn.ModuleList(
            nn.Linear(embed_dims, c) for c in (dims if feedback else [])
        )
        self.init_queries()

    # -- what the backbone returns -----------------------------------------------------
    @torch.no_grad()
    def _outputs(
        self, channels: Sequence[int] | None, strides: Sequence[int] | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels and strides of the outputs: those given, or those of a trial."""
        if channels is not None and strides is not None:
            if len(channels) != len(strides):
                raise ValueError(
                    f'backbone.channels={list(channels)} and backbone.strides='
                    f'{list(strides)} differ in number'
                )
            return tuple(channels), tuple(strides)
        name = type(self).__name__
        hint = 'give backbone.channels and backbone.strides, one per output'
        side, training = 128, self.training
        self.eval()
        try:
            outputs = super().forward(torch.zeros(1, 3, side, side))
        except Exception as error:
            raise ValueError(
                f'{name}: the strides of its outputs are not known, and a trial with '
                f'an image of {side} pixels failed ({error}); {hint}'
            ) from error
        finally:
            self.train(training)
        maps = isinstance(outputs, (tuple, list)) and all(
            isinstance(x, Tensor) and x.dim() == 4 and side % x.shape[-1] == 0
            for x in outputs
        )
        if not maps or not outputs:
            shown = [
                tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                for x in (outputs if isinstance(outputs, (tuple, list)) else [outputs])
            ]
            raise ValueError(
                f'{name}: for an image of {side} pixels it returns {shown}, which '
                f'tells no strides of feature maps (B, C, H, W); {hint}'
            )
        dims = tuple(x.shape[1] for x in outputs)
        return dims, tuple(side // x.shape[-1] for x in outputs)

    def _stages(self, stages: Sequence[int] | None) -> tuple[int, ...]:
        count = len(self.output_dims)
        if stages is None:
            return tuple(range(count))
        bad = [i for i in stages if not -count <= i < count]
        if bad or not stages:
            raise ValueError(
                f'backbone.stages={list(stages)}: choose from the {count} outputs'
            )
        return tuple(sorted({i % count for i in stages}))

    # -- construction ------------------------------------------------------------------
    def init_weights(self) -> None:
        """Initialise the backbone and the queries; weights from a file are kept."""
        if (
            isinstance(self.init_cfg, dict)
            and self.init_cfg.get('type') == 'Pretrained'
        ):
            self.init_queries()  # the file may have better ones
            super().init_weights()
        else:
            super().init_weights()
            self.init_queries()

    @property
    def interaction_spec(self) -> InteractionSpec:
        """What :meth:`interactions` records, known beforehand."""
        return InteractionSpec(
            layers=self.interaction_stages,
            num_queries=self.num_queries,
            embed_dims=self.embed_dims,
            feedback=self.feedback,
            output_dims=self.output_dims,
            output_strides=self.output_strides,
        )

    def freeze_unreached(
        self,
        last_map: int | None,
        last_query: int | None,
        last_output: int | None = -1,
        first_output: int = 0,
    ) -> list[str]:
        """Freeze the parameters of the interaction that no loss reaches.

        See :meth:`InteractionViT.freeze_unreached`. The backbone itself is left as it
        is: which of its parameters come after an output it does not tell.

        Args:
            last_map: Position, among the stages with an interaction, of the last one
                whose attention is supervised; None if none is.
            last_query: The same for the queries.
            last_output: Index of the last of the outputs that a loss looks at; None if
                none does.
            first_output: Index of the first of them.

        Returns:
            Names of the parameters that were frozen.

        Raises:
            ValueError: If no loss reaches anything, or what comes after the last loss
                cannot be left out.
        """
        count, stages = len(self.output_dims), self.interaction_stages
        if last_output is not None and not -count <= last_output < count:
            raise ValueError(f'output {last_output}: the backbone has {count}')
        reached = max((x for x in (last_map, last_query) if x is not None), default=-1)
        end = -1 if last_output is None else last_output % count
        if reached < 0 > end:
            raise ValueError(
                'no loss reaches the backbone: none looks at its outputs, and none '
                'supervises its queries'
            )
        last = max(end, stages[reached] if reached >= 0 else -1)
        if last < count - 1:
            raise ValueError(
                f'the last loss looks at output {last} of {count}: leave out the '
                "others by the backbone's out_indices"
            )
        frozen: list[nn.Parameter] = []
        # what is written into an output is seen by nobody but the detector
        writes = self.feedback and end >= 0
        if not writes:
            frozen += self.interaction.parameters_writing()
            unread = self.interaction_in[reached + 1 :]
            frozen += [p for module in unread for p in module.parameters()]
            if reached < 0:
                frozen += [self.queries, *self.interaction.parameters()]
            elif last_query is None and reached == 0:
                frozen += self.interaction.parameters_reading()
            if reached == 0 and self.interaction.carry is not None:
                frozen.append(self.interaction.carry)
        for stage, out in zip(stages, self.interaction_out):
            if stage < first_output or not writes:
                frozen += out.parameters()
        for parameter in frozen:
            parameter.requires_grad_(False)
        ids = {id(p) for p in frozen}
        names = [n for n, p in self.named_parameters() if id(p) in ids]
        if names:
            print_log(
                f'no loss reaches {len(names)} parameters of the interaction; frozen: '
                f'{", ".join(names)}',
                logger='current',
            )
        return names

    # -- forward -----------------------------------------------------------------------
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Extract features, as the backbone does, and let the queries read them.

        Args:
            x: Images (B, 3, H, W), normalised.
            *args: For the backbone.
            **kwargs: For the backbone.

        Returns:
            Its outputs; with feedback, after their patches have read from the queries.
        """
        outs = list(super().forward(x, *args, **kwargs))
        trace = self._trace
        if trace is None and not self.feedback:
            return tuple(outs)  # nobody would see what the queries do
        side = self.patch_size
        grid = (math.ceil(x.shape[-2] / side), math.ceil(x.shape[-1] / side))
        valid = self.valid_cells(grid, x)
        queries = self.queries.expand(len(x), -1, -1)
        logits: Tensor | None = None
        for i, stage in enumerate(self.interaction_stages):
            cells = to_grid(outs[stage], self.output_strides[stage], side, grid)
            tokens = self.interaction_in[i](cells.flatten(2).transpose(1, 2))
            written, queries, logits = self.interaction(tokens, queries, logits, valid)
            if self.feedback:
                change = self.interaction_out[i](written - tokens)
                change = change.transpose(1, 2).unflatten(2, grid)
                size = (int(outs[stage].shape[-2]), int(outs[stage].shape[-1]))
                change = to_grid(change, side, self.output_strides[stage], size)
                outs[stage] = outs[stage] + change
            if trace is not None:
                trace.logits.append(logits)
                trace.queries.append(queries)
        if trace is not None:
            trace.grid, trace.valid, trace.outputs = grid, valid, tuple(outs)
        return tuple(outs)


def to_grid(x: Tensor, stride: int, side: int, grid: tuple[int, int]) -> Tensor:
    """Bring feature maps onto a grid of another stride.

    Finer ones are averaged, also where a cell is cut off by the border; coarser ones
    are repeated.

    Args:
        x: (B, C, H, W).
        stride: Pixels per cell of ``x``.
        side: Pixels per cell of the grid, a multiple or a divisor of ``stride``.
        grid: (h, w) of the grid.

    Returns:
        (B, C, h, w).
    """
    if side > stride:
        ratio = side // stride
        x = F.avg_pool2d(x, ratio, ceil_mode=True, count_include_pad=False)
    elif side < stride:
        x = F.interpolate(x, scale_factor=stride // side, mode='nearest')
    h, w = grid
    return x if x.shape[-2:] == grid else x[..., :h, :w]


_CLASSES: dict[type, type] = {}


def interaction_class(backbone: type) -> type:
    """The class of a backbone with queries, made once.

    Args:
        backbone: Class of a backbone.
    """
    if backbone in _CLASSES:
        return _CLASSES[backbone]
    name = f'Interaction{backbone.__name__}'
    doc = f':class:`{backbone.__name__}` with queries, see :func:`InteractionBackbone`.'
    attributes = dict(__doc__=doc, __module__=__name__)
    _CLASSES[backbone] = type(name, (StageInteractionMixin, backbone), attributes)
    return _CLASSES[backbone]


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
