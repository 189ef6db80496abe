"""Which attention heads a teacher reads, and whether it keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.utils import is_seq_of
from torch import Tensor

from lfi_mmdet.structures import take_layers


class HeadChoice:
    """Average attention heads, or keep each as a layer of its own.

    Args:
        heads: ``'mean'``: averaged; ``'keep'``: each head counts as a layer; indices:
            only these heads are averaged.
        num_heads: Number of heads there are.

    Raises:
        ValueError: If it is something else, or there is no such head.
    """

    def __init__(self, heads: str | Sequence[int], num_heads: int) -> None:
        known = heads in ('mean', 'keep') if isinstance(heads, str) else False
        listed = not isinstance(heads, str) and is_seq_of(heads, int) and len(heads) > 0
        if not known and not (listed and set(heads) <= set(range(num_heads))):
            raise ValueError(
                f"teacher.heads={heads!r} must be 'mean', 'keep' or a list of indices "
                f'from 0 to {num_heads - 1}'
            )
        self.kept = num_heads if heads == 'keep' else 1
        self.indices = None if known else sorted({int(head) for head in heads})

    def __call__(self, maps: Tensor) -> Tensor:
        """(M, heads, ...) to (M, kept, ...)."""
        if self.kept > 1:
            return maps
        if self.indices is not None:
            maps = take_layers(maps, self.indices)
        return maps.mean(1, keepdim=True)

    def names(self, layers: Sequence[int]) -> list[str]:
        """Names of all layers, heads of a layer next to one another."""
        if self.kept == 1:
            return [str(layer) for layer in layers]
        return [f'{layer}.h{head}' for layer in layers for head in range(self.kept)]
