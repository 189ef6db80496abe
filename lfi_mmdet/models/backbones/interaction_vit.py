"""Plain ViT for detection with persistent interaction queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.utils import is_seq_of
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lfi_mmdet.structures import InteractionSpec

from ..utils import (
    QueryInteraction,
    ViTBlock,
    load_vit_checkpoint,
)
from .query_mixin import QueryMixin, freeze


class PatchEmbed(nn.Module):
    """Cut an image into patches; the last ones are padded if it does not divide."""

    def __init__(self, patch_size: int, in_channels: int, embed_dims: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) pixels to (B, H / patch, W / patch, embed_dims)."""
        h, w = x.shape[-2:]
        x = F.pad(x, (0, -w % self.patch_size, 0, -h % self.patch_size))
        return self.proj(x).permute(0, 2, 3, 1)


@MODELS.register_module()
class InteractionViT(QueryMixin, BaseModule):
    """ViT with windowed and global blocks (ViTDet) and interaction queries (LFI).

    An ordinary mmdet backbone: without :meth:`interactions` around the forward pass
    nothing is recorded, and with ``num_queries=0`` it is the plain ViT. See DESIGN
    section 2 for the equations and section 3 for the data flow.

    Args:
        arch: One of ``InteractionViT.ARCHS``, or a dict with ``embed_dims``,
            ``num_layers`` and ``num_heads``.
        pretrain_img_size: Image side for which ``pos_embed`` is kept, in pixels; at
            other sizes it is resized on the fly.
        patch_size: Side of a patch in pixels.
        in_channels: Channels of the image.
        window_size: Side of the attention windows in patches; 0 for none.
        global_layers: Blocks with global attention.
        mlp_ratio: Hidden channels of the MLPs over ``embed_dims``.
        qkv_bias: Whether the attention projections have a bias.
        drop_path_rate: Stochastic depth of the last block; it grows linearly.
        layer_scale: Start value of the layer scale (DeiT III); None for none.
        use_rel_pos: Add decomposed relative positions (MViTv2) to the attention.
        out_layers: Blocks whose tokens are returned; negative ones count from the end.
        num_queries: K, one per text; 0 for a plain ViT.
        interaction_layers: Blocks after which queries and patches interact.
        interaction_heads: Heads of the interaction; None for those of the ViT.
        interaction_channels: Channels of its queries and keys; None for half of
            ``embed_dims``.
        carry: Carry attention logits from layer to layer.
        query_attention: Let queries attend to one another.
        feedback: Let patches read from the queries.
        text_embeddings: File (K, C) of text embeddings that the queries start from;
            None for random ones. Read by :meth:`init_weights`.
        with_cp: Recompute the blocks' activations in the backward pass.
        interaction_cp: The same for the interactions, which are cheap to recompute
            and large to keep.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` takes DeiT, MAE, timm,
            mmpretrain and ViTDet checkpoints, see :func:`load_vit_checkpoint`.
    """

    ARCHS = {
        'deit-tiny': dict(embed_dims=192, num_layers=12, num_heads=3),
        'deit-small': dict(embed_dims=384, num_layers=12, num_heads=6),
        'deit-base': dict(embed_dims=768, num_layers=12, num_heads=12),
    }

    def __init__(
        self,
        arch: str | dict = 'deit-small',
        pretrain_img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        window_size: int = 14,
        global_layers: Sequence[int] = (2, 5, 8, 11),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
        use_rel_pos: bool = False,
        out_layers: Sequence[int] = (-1,),
        num_queries: int = 0,
        interaction_layers: Sequence[int] = (2, 5, 8, 11),
        interaction_heads: int | None = None,
        interaction_channels: int | None = None,
        carry: bool = True,
        query_attention: bool = True,
        feedback: bool = True,
        text_embeddings: str | None = None,
        with_cp: bool = False,
        interaction_cp: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        dims, depth, heads = self._parse_arch(arch)
        self.embed_dims, self.patch_size, self.with_cp = dims, patch_size, with_cp
        self.window_size = window_size
        self.out_layers = self._check_layers('out_layers', out_layers, depth)
        global_layers = self._check_layers('global_layers', global_layers, depth)
        side = pretrain_img_size // patch_size

        self.patch_embed = PatchEmbed(patch_size, in_channels, dims)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, dims))
        windows = [0 if i in global_layers else window_size for i in range(depth)]
        self.blocks = nn.ModuleList(
            ViTBlock(
                dims,
                heads,
                window_size=window,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                init_values=layer_scale,
                rel_pos_size=((window or side,) * 2 if use_rel_pos else None),
            )
            for i, window in enumerate(windows)
        )

        self.num_queries, self.text_embeddings = num_queries, text_embeddings
        self.interaction_layers: tuple[int, ...] = ()
        self.feedback = bool(num_queries) and feedback
        if num_queries:
            self.interaction_layers = self._check_layers(
                'interaction_layers', interaction_layers, depth
            )
            if self.interaction_layers[-1] > max(self.out_layers):
                raise ValueError(
                    f'interaction_layers={self.interaction_layers} go beyond the last '
                    f'of out_layers={self.out_layers}, so they could not be trained'
                )
            self.queries = nn.Parameter(torch.zeros(num_queries, dims))
            self.interaction = QueryInteraction(
                dims,
                interaction_heads or heads,
                interaction_channels or dims // 2,
                carry=carry and len(self.interaction_layers) > 1,
                query_attention=query_attention,
                feedback=feedback,
                with_cp=interaction_cp,
            )

    # -- construction ------------------------------------------------------------------
    def _parse_arch(self, arch: str | dict) -> tuple[int, int, int]:
        if isinstance(arch, str):
            if arch not in self.ARCHS:
                raise ValueError(
                    f'backbone.arch={arch!r} is not known; choose from '
                    f'{sorted(self.ARCHS)} or give a dict with embed_dims, num_layers '
                    'and num_heads'
                )
            self.arch_name, arch = arch, self.ARCHS[arch]
        else:
            self.arch_name = str(dict(arch))
        try:
            return arch['embed_dims'], arch['num_layers'], arch['num_heads']
        except KeyError as error:
            raise ValueError(f'backbone.arch={arch} lacks {error}') from None

    @staticmethod
    def _check_layers(name: str, layers: Sequence[int], depth: int) -> tuple[int, ...]:
        if not is_seq_of(layers, int) or not layers:
            raise ValueError(
                f'backbone.{name}={layers!r} is not a list of block indices'
            )
        bad = [i for i in layers if not -depth <= i < depth]
        if bad:
            raise ValueError(f'backbone.{name}={layers}: no block {bad} among {depth}')
        return tuple(sorted({i % depth for i in layers}))

    def init_weights(self) -> None:
        """Initialise, then load ``init_cfg``'s checkpoint and the text embeddings."""
        if self.is_init:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.num_queries:
            self.init_queries()
        init_cfg = self.init_cfg or {}
        if init_cfg.get('type') == 'Pretrained':
            load_vit_checkpoint(self, init_cfg['checkpoint'])
        elif init_cfg:
            raise ValueError(
                f'backbone.init_cfg={init_cfg}: only type="Pretrained" is known'
            )
        self._is_init = True

    # -- recording ---------------------------------------------------------------------
    @property
    def interaction_spec(self) -> InteractionSpec:
        """What :meth:`interactions` records, known beforehand."""
        return InteractionSpec(
            layers=self.interaction_layers,
            num_queries=self.num_queries,
            embed_dims=self.embed_dims,
            feedback=self.feedback,
            output_dims=(self.embed_dims,) * len(self.out_layers),
            output_strides=(self.patch_size,) * len(self.out_layers),
        )

    def freeze_unreached(
        self,
        last_map: int | None,
        last_query: int | None,
        last_output: int | None = -1,
        read_outputs: Sequence[int] | None = None,
        pretraining: bool = False,
    ) -> list[str]:
        """Freeze the parameters that no loss reaches.

        DDP with ``find_unused_parameters=False`` needs a gradient for every trainable
        parameter. What comes after all that losses look at is used by nobody. Without
        feedback only the supervision reaches the interaction, and what the queries
        read in their last supervised layer is used by nobody unless a loss looks at
        the queries themselves.

        Args:
            last_map: Position, among the interaction layers, of the last one whose
                attention is supervised; None if none is.
            last_query: The same for the queries.
            last_output: Index of the last of the outputs that a loss looks at; None if
                none does.
            read_outputs: Indices of all of them; those before the last change
                nothing, since later blocks need the earlier ones.
            pretraining: Whether there is no detector; it changes nothing either.

        Returns:
            Names of the parameters that were frozen.

        Raises:
            ValueError: If no loss reaches anything, or there is no such output.
        """
        count, layers = len(self.out_layers), self.interaction_layers
        if last_output is not None and not -count <= last_output < count:
            raise ValueError(f'output {last_output}: backbone.out_layers has {count}')
        # a position among the interaction layers
        reached = max((x for x in (last_map, last_query) if x is not None), default=-1)
        end = -1 if last_output is None else self.out_layers[last_output]  # a block
        if reached < 0 > end:
            raise ValueError(
                'no loss reaches the backbone: none looks at its outputs, and none '
                'supervises its queries'
            )
        last_block = max(end, layers[reached] if reached >= 0 else -1)
        frozen = [p for b in self.blocks[last_block + 1 :] for p in b.parameters()]
        # layers whose feedback goes into an output
        written = sum(layer <= end for layer in layers) if self.feedback else 0
        writes = self.feedback and (written > 0 or reached > 0)
        if self.num_queries:
            if not writes and reached < 0:
                frozen += [self.queries, *self.interaction.parameters()]
            elif not writes:
                frozen += self.interaction.parameters_writing()
                if last_query is None and reached == 0:
                    frozen += self.interaction.parameters_reading()
            if max(written, reached + 1) == 1 and self.interaction.carry is not None:
                frozen.append(self.interaction.carry)
        return freeze(self, frozen)

    # -- forward -----------------------------------------------------------------------
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            x: Images (B, 3, H, W), normalised.

        Returns:
            One (B, d, H / patch, W / patch) per entry of ``out_layers``.
        """
        tokens = self.patch_embed(x)
        b, h, w, _ = tokens.shape
        side = int(self.pos_embed.shape[1] ** 0.5)
        pos_embed = resample_abs_pos_embed(
            self.pos_embed, [h, w], [side, side], num_prefix_tokens=0
        )
        tokens = tokens + pos_embed.view(1, h, w, -1)

        trace = self._trace
        # queries that neither write back nor are recorded change nothing
        interacts = self.feedback or (trace is not None and self.num_queries)
        queries = self.queries.expand(b, -1, -1) if interacts else None
        looked_at = interacts or trace is not None
        valid = self.valid_cells((h, w), x) if looked_at else None
        if trace is not None:
            trace.grid, trace.valid = (h, w), valid
        logits: Tensor | None = None
        outs = []
        for i, block in enumerate(self.blocks):
            if self.with_cp and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if queries is not None and i in self.interaction_layers:
                flat, queries, logits = self.interaction(
                    tokens.flatten(1, 2), queries, logits, valid
                )
                tokens = flat.view_as(tokens)
                if trace is not None:
                    trace.logits.append(logits)
                    trace.queries.append(queries)
            if i in self.out_layers:
                outs.append(tokens.permute(0, 3, 1, 2).contiguous())
        if trace is not None:
            trace.outputs = tuple(outs)
        return tuple(outs)
