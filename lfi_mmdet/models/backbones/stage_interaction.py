"""Queries that read the outputs of a backbone, one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionSpec

from ..utils import QueryInteraction, own_weights, pretrained_file, to_grid
from .query_mixin import QueryMixin, freeze

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
            # without a bias: at first nothing is written
            nn.Linear(embed_dims, c, bias=False)
            for c in (dims if feedback else [])
        )
        self.init_queries(read_texts=False)

    # -- what the backbone returns -----------------------------------------------------
    @torch.no_grad()
    def _outputs(
        self, channels: Sequence[int] | None, strides: Sequence[int] | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels and strides of the outputs: those given, or those of a trial."""
        if (channels is None) != (strides is None):
            raise ValueError(
                f'backbone.channels={channels} and backbone.strides={strides}: give '
                'both, one per output, or neither'
            )
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
            # DetectoRS hands on the image itself, which is no output to write into
            found = [i for i, stride in enumerate(self.output_strides) if stride > 1]
            return tuple(found)
        bad = [i for i in stages if not -count <= i < count]
        if bad or not stages:
            raise ValueError(
                f'backbone.stages={list(stages)}: choose from the {count} outputs'
            )
        return tuple(sorted({i % count for i in stages}))

    def _check_outputs(self, outs: Any, x: Tensor) -> None:
        """Check that those with an interaction are what the constructor knows of."""
        name, count = type(self).__name__, len(self.output_dims)
        if not isinstance(outs, (tuple, list)) or len(outs) != count:
            got = len(outs) if isinstance(outs, (tuple, list)) else type(outs).__name__
            raise ValueError(f'{name} returns {got}, not {count} outputs')
        for i in self.interaction_stages:
            out, dims, stride = outs[i], self.output_dims[i], self.output_strides[i]
            sizes = [n / stride for n in x.shape[-2:]]
            fits = all(
                math.floor(size) <= n <= math.ceil(size)
                for size, n in zip(sizes, out.shape[-2:])
            )
            if not fits or out.shape[:2] != (len(x), dims):
                raise ValueError(
                    f'{name}: output {i} is {tuple(out.shape)} for images '
                    f'{tuple(x.shape)}, which does not go with {dims} channels and '
                    f'stride {stride}; see backbone.channels and backbone.strides'
                )

    # -- construction ------------------------------------------------------------------
    def init_queries(self, read_texts: bool = True) -> None:
        """See :meth:`QueryMixin.init_queries`; the projections are initialised too."""
        super().init_queries(read_texts)
        for module in (*self.interaction_in, *self.interaction_out):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def init_weights(self) -> None:
        """Initialise the backbone and the queries.

        A file of weights for the backbone alone leaves the queries as they are. One
        that has queries, as :class:`InteractionPretrainer` and LFI detectors write it,
        must have all that is here; it may have the backbone's prefix ``backbone.``.

        Raises:
            ValueError: If a file with queries does not fit.
        """
        if self.is_init:
            return
        self.init_queries()
        path = pretrained_file(self.init_cfg)
        if path is not None:
            state = own_weights(CheckpointLoader.load_checkpoint(path, 'cpu'))
            if state is not None:
                self._take(state, path)
                self._is_init = True
                return
        super().init_weights()
        if path is None:
            self.init_queries()  # some backbones initialise all layers that they find

    def _take(self, state: dict[str, Tensor], path: str) -> None:
        """Load a file that has queries, all of it or nothing."""
        own = self.state_dict()
        wrong = [f'{key} is not in it' for key in own if key not in state]
        wrong += [f'{key} has no place here' for key in state if key not in own]
        wrong += [
            f'{key} is {tuple(state[key].shape)}, here {tuple(value.shape)}'
            for key, value in own.items()
            if key in state and state[key].shape != value.shape
        ]
        if wrong:
            raise ValueError(
                f'backbone.init_cfg: {path} has queries, but does not fit this '
                f'backbone: {"; ".join(wrong[:4])}; give the same backbone and '
                'interaction as when it was trained'
            )
        self.load_state_dict(state)
        print_log(f'loaded {len(state)} tensors from {path}', logger='current')

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
        read_outputs: Sequence[int] | None = None,
        pretraining: bool = False,
    ) -> list[str]:
        """Freeze the parameters of the interaction that no loss reaches.

        See :meth:`InteractionViT.freeze_unreached`. The backbone itself is left as it
        is: which of its parameters belong to an output it does not tell.

        Args:
            last_map: Position, among the stages with an interaction, of the last one
                whose attention is supervised; None if none is.
            last_query: The same for the queries.
            last_output: Index of the last of the outputs that a loss looks at; None if
                none does.
            read_outputs: Indices of all of them; None for those up to the last.
            pretraining: Whether there is no detector, so that every output must be
                looked at by the distiller or the queries.

        Returns:
            Names of the parameters that were frozen.

        Raises:
            ValueError: If no loss reaches anything, or, in a pre-training, not all.
        """
        count, stages = len(self.output_dims), self.interaction_stages
        if last_output is not None and not -count <= last_output < count:
            raise ValueError(f'output {last_output}: the backbone has {count}')
        reached = max((x for x in (last_map, last_query) if x is not None), default=-1)
        end = -1 if last_output is None else last_output % count
        if read_outputs is None:
            read = set(range(end + 1))
        else:
            read = {output % count for output in read_outputs}
        if reached < 0 and not read:
            raise ValueError(
                'no loss reaches the backbone: none looks at its outputs, and none '
                'supervises its queries'
            )
        unseen = set(range(count)) - read - set(stages[: reached + 1])
        if pretraining and unseen:
            raise ValueError(
                f'no loss looks at the outputs {sorted(unseen)} of {count}; leave them '
                "out by the backbone's out_indices, or have the queries read them"
            )
        frozen: list[nn.Parameter] = []
        # what is written into an output is seen by nobody but its readers
        writes = self.feedback and not read.isdisjoint(stages)
        if not writes:
            frozen += self.interaction.parameters_writing()
            if reached < 0:
                frozen += [self.queries, *self.interaction.parameters()]
            elif last_query is None and reached == 0:
                frozen += self.interaction.parameters_reading()
            if reached == 0 and self.interaction.carry is not None:
                frozen.append(self.interaction.carry)
        written = [i for i, stage in enumerate(stages) if stage in read and writes]
        last = max([reached, *written])
        frozen += [p for m in self.interaction_in[last + 1 :] for p in m.parameters()]
        for stage, out in zip(stages, self.interaction_out):
            if stage not in read:
                frozen += out.parameters()
        return freeze(self, frozen)

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
        given = super().forward(x, *args, **kwargs)
        trace = self._trace
        if trace is None and not self.feedback:
            return given  # nobody would see what the queries do
        self._check_outputs(given, x)
        outs = list(given)
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
