"""Which outputs of its backbone a detector looks at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def read_outputs(detector: Any) -> list[int]:
    """Indices of the outputs of the backbone that the neck looks at.

    Some necks leave out the first outputs (``start_level``) or all but the last, and
    what is written into those reaches no loss. A trial of the neck with small maps of
    zeros tells which; nothing of it stays.

    Args:
        detector: A detector whose backbone has queries, or any other.

    Returns:
        Counted from the end, so that -1 is the last output; that alone where nothing is
        written into outputs, or where the backbone does not tell its outputs.

    Raises:
        ValueError: If the neck fails on such maps.
    """
    spec = getattr(detector.backbone, 'interaction_spec', None)
    if spec is None or not spec.feedback or len(spec.output_dims) < 2:
        return [-1]
    count = len(spec.output_dims)
    if not detector.with_neck:
        return list(range(-count, 0))
    side = 8 * max(spec.output_strides)
    maps = [
        torch.zeros(1, dims, side // stride, side // stride, requires_grad=True)
        for dims, stride in zip(spec.output_dims, spec.output_strides)
    ]
    modes = {module: module.training for module in detector.neck.modules()}
    detector.neck.eval()  # no statistics of zeros
    try:
        with torch.enable_grad():
            outs = _tensors(detector.neck(tuple(maps)))
            total = torch.stack([out.sum() for out in outs]).sum()
            found = torch.autograd.grad(total, maps, allow_unused=True)
    except Exception as error:
        raise ValueError(
            f'model.neck ({type(detector.neck).__name__}) fails on maps of a backbone '
            f'with {list(spec.output_dims)} channels and strides '
            f'{list(spec.output_strides)}, so it cannot be told which it reads: {error}'
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return [i - count for i, gradient in enumerate(found) if gradient is not None]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []
