"""Image towers of open_clip models, read patch by patch."""

from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: How the last block may treat patches, see :class:`CLIPTeacher`
MODES = ('value', 'qq', 'last')


class ImageTower(metaclass=ABCMeta):
    """What a teacher needs of an image tower, whoever wrote it.

    It holds no state of its own: the network stays the teacher's.

    Args:
        visual: Image tower of an open_clip model.
        blocks: Its transformer blocks.
        grid_size: Rows and columns of patches.
    """

    def __init__(
        self, visual: Any, blocks: nn.ModuleList, grid_size: Sequence[int]
    ) -> None:
        self.visual, self.blocks = visual, blocks
        self.grid_size: tuple[int, int] = (int(grid_size[0]), int(grid_size[1]))

    @property
    def attentions(self) -> list[nn.Module]:
        """The attention module of every block."""
        return [block.get_submodule('attn') for block in self.blocks]

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels of a patch token."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the tower's weights."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Bring patches into the joint space, each as though it were the image.

        Args:
            tokens: (B, L, N, C).

        Returns:
            (B, L, N, E), float32.
        """

    @abstractmethod
    def _qq_block(self, block: Any, x: Tensor, context: dict[str, Any]) -> Tensor:
        """What attention returns when keys are queries, without residual and FFN."""

    def intermediates(
        self, images: Tensor, layers: Collection[int], pooled: bool = False
    ) -> tuple[dict[int, Tensor], int, Tensor | None]:
        """Tokens after some blocks.

        Args:
            images: (B, 3, S, S).
            layers: Indices of the blocks.
            pooled: Whether the image's own embedding is wanted as well; the whole
                tower is run for it.

        Returns:
            Tokens (B, prefix + N, C) by block, the number of prefix tokens, and the
            embedding (B, E) or None.
        """
        indices = sorted(layers)
        output = self.visual.forward_intermediates(
            images.to(self.dtype),
            indices=indices,
            stop_early=not pooled,
            intermediates_only=not pooled,
            output_fmt='NLC',
            output_extra_tokens=True,
        )
        tokens, prefix = output['image_intermediates'], 0
        if 'image_intermediates_prefix' in output:
            extra = output['image_intermediates_prefix']
            prefix = extra[0].shape[1]
            tokens = [torch.cat(pair, 1) for pair in zip(extra, tokens)]
        return dict(zip(indices, tokens)), prefix, output.get('image_features')

    def patch_tokens(
        self,
        images: Tensor,
        layers: Sequence[int],
        mode: str,
        pooled: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Patch tokens after some blocks, the last block done over if asked to.

        Args:
            images: (B, 3, S, S).
            layers: Indices of the blocks, ascending.
            mode: One of :data:`MODES`.
            pooled: See :meth:`intermediates`.

        Returns:
            (B, L, N, C), float32, and the image's embedding (B, E) or None.
        """
        last = len(self.blocks) - 1
        wanted = set(layers)
        redo = mode != 'last' and last in wanted
        if redo:  # it starts from what enters it
            wanted = wanted - {last} | {last - 1}
        context: dict[str, Any] = {}

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            # rotary positions, which all blocks share
            context.update({k: v for k, v in kwargs.items() if k == 'rope'})

        handle = self.blocks[max(last - 1, 0)].register_forward_pre_hook(
            keep, with_kwargs=True
        )
        try:
            tokens, prefix, embedding = self.intermediates(images, wanted, pooled)
        finally:
            handle.remove()
        if redo:
            block, x = self.blocks[last], tokens[last - 1]
            if mode == 'value':
                # nothing but itself can be attended to
                alone = torch.full((x.shape[1],) * 2, float('-inf'), device=x.device)
                mask = alone.fill_diagonal_(0).to(x.dtype)
                tokens[last] = block(x, attn_mask=mask, **context)
            else:
                tokens[last] = self._qq_block(block, x, context)
        stacked = torch.stack([tokens[layer][:, prefix:] for layer in layers], 1)
        return stacked.float(), embedding


class OpenClipTower(ImageTower):
    """open_clip's own vision transformer (OpenAI, LAION, MetaCLIP, DFN weights)."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual, visual.transformer.resblocks, visual.grid_size)

    @property
    def width(self) -> int:
        """Channels of a patch token."""
        return int(self.visual.conv1.out_channels)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tower's weights."""
        return self.visual.conv1.weight.dtype

    def project(self, tokens: Tensor) -> Tensor:
        """Last norm and projection of each patch, in float32."""
        visual = self.visual
        normed = visual.ln_post(tokens.to(self.dtype)).float()
        return normed if visual.proj is None else normed @ visual.proj.float()

    def _qq_block(self, block: Any, x: Tensor, context: dict[str, Any]) -> Tensor:
        # the block's own method knows how its attention wants to be called
        changed: Any = copy.copy(block)
        changed._modules = dict(block._modules, attn=keys_are_queries(block.attn))
        if hasattr(block, 'attention'):
            mixed = changed.attention(block.ln_1(x))
        else:
            mixed = getattr(block, 'ln_attn', nn.Identity())(
                changed.attn(block.ln_1(x))
            )
        return block.ls_1(mixed)


class TimmTower(ImageTower):
    """A transformer of timm inside an open_clip model (EVA-CLIP, SigLIP).

    Raises:
        ValueError: If it is no plain transformer whose patches can be followed.
    """

    def __init__(self, visual: Any, model: str) -> None:
        trunk = visual.trunk
        needed = ('blocks', 'patch_embed', 'forward_head', 'forward_intermediates')
        grid = getattr(getattr(trunk, 'patch_embed', None), 'grid_size', None)
        if not all(hasattr(trunk, name) for name in needed) or grid is None:
            raise ValueError(
                f'teacher.model={model!r} has the image tower {type(trunk).__name__}; '
                'only transformers with a fixed patch grid have patches to read, e.g. '
                'ViT-B-16 or EVA02-B-16'
            )
        pool = getattr(trunk, 'attn_pool', None)
        if getattr(pool, 'pos_embed', None) is not None:
            raise ValueError(
                f'teacher.model={model!r} pools with positions of its own, which a '
                'patch alone cannot pass'
            )
        super().__init__(visual, trunk.blocks, grid)
        self.trunk = trunk

    @property
    def width(self) -> int:
        """Channels of a patch token."""
        return int(self.trunk.embed_dim)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tower's weights."""
        return next(self.trunk.parameters()).dtype

    @property
    def pool(self) -> nn.Module | None:
        """The attention pooler (SigLIP's), or None."""
        return getattr(self.trunk, 'attn_pool', None)

    def project(self, tokens: Tensor) -> Tensor:
        """The tower's own pooling and projection of each patch alone."""
        normed = self.trunk.norm(tokens.to(self.dtype))
        # in the place of all tokens it passes any pooling as it is
        count = 1 + int(getattr(self.trunk, 'num_prefix_tokens', 0))
        alone = normed.flatten(0, 2)[:, None].expand(-1, count, -1)
        pooled = self.visual.head(self.trunk.forward_head(alone))
        return pooled.unflatten(0, tokens.shape[:3]).float()

    def _qq_block(self, block: Any, x: Tensor, context: dict[str, Any]) -> Tensor:
        mixed = keys_are_queries(block.attn)(block.norm1(x), **context)
        if getattr(block, 'gamma_1', None) is not None:
            return block.gamma_1 * mixed
        return getattr(block, 'ls1', nn.Identity())(mixed)


def keys_are_queries(attn: Any) -> Any:
    """Return an attention module that compares queries with queries (ClearCLIP).

    Everything else is shared with ``attn``, which stays as it is.

    Raises:
        TypeError: If it stores its weights in no known way.
    """
    state, changed = attn._parameters, copy.copy(attn)
    changed._parameters, changed._modules = dict(state), dict(attn._modules)
    changed._buffers = dict(attn._buffers)
    if state.get('in_proj_weight') is not None:
        for name in ('in_proj_weight', 'in_proj_bias'):
            changed._parameters[name] = _query_for_key(state[name])
    elif isinstance(attn._modules.get('qkv'), nn.Linear):
        qkv = copy.copy(attn.qkv)
        qkv._parameters = {k: _query_for_key(v) for k, v in qkv._parameters.items()}
        changed._modules['qkv'] = qkv
        if attn._buffers.get('k_bias') is not None:
            changed._buffers['k_bias'] = attn.q_bias
    elif isinstance(attn._modules.get('k_proj'), nn.Linear):
        changed._modules['k_proj'] = attn.q_proj
    else:
        raise TypeError(
            f"teacher.mode='qq' does not know the weights of {type(attn).__name__}; "
            "choose 'value' or 'last'"
        )
    for key, query in (('k_norm', 'q_norm'), ('ln_k', 'ln_q')):
        if query in attn._modules:
            changed._modules[key] = attn._modules[query]
    return changed


def _query_for_key(value: Tensor | None) -> nn.Parameter | None:
    if value is None:
        return None
    query, _, rest = value.chunk(3)
    return nn.Parameter(torch.cat((query, query, rest)), requires_grad=False)


def image_tower(network: Any, model: str) -> ImageTower:
    """Return the image tower of an open_clip model for reading patches.

    Raises:
        ValueError: If its patches cannot be read, or pixels are left over at the
            border.
    """
    from open_clip.timm_model import TimmModel

    from .open_clip_loader import vision_transformer

    if isinstance(network.visual, TimmModel):
        return TimmTower(network.visual, model)
    return OpenClipTower(vision_transformer(network, model))
