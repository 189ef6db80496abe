"""Which layers of a network a teacher reads."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.utils import is_seq_of


def resolve_layers(
    layers: str | Sequence[int], depth: int, what: str = 'layers'
) -> tuple[int, ...]:
    """Turn the ``layers`` of a config into ascending, non-negative indices.

    Args:
        layers: ``'all'``, or indices, where negative ones count from the end.
        depth: Number of layers there are.
        what: What the layers belong to, for the message.

    Returns:
        Indices between 0 and ``depth - 1``, ascending.

    Raises:
        ValueError: If an index is out of range or given twice, or there is none.
    """
    if layers == 'all':
        return tuple(range(depth))
    if isinstance(layers, str) or not is_seq_of(layers, int) or not layers:
        raise ValueError(
            f"teacher.layers={layers!r} must be 'all' or a list of indices of the "
            f'{depth} {what}'
        )
    for index in layers:
        if not -depth <= index < depth:
            raise ValueError(
                f'teacher.layers={list(layers)}: {index} is out of range; there are '
                f'{depth} {what}, choose from {-depth} to {depth - 1}'
            )
    resolved = sorted({index % depth for index in layers})
    if len(resolved) != len(layers):
        raise ValueError(
            f'teacher.layers={list(layers)} names one of the {depth} {what} twice'
        )
    return tuple(resolved)
