"""Parameters and arithmetic of a detector."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lfi_mmdet.models.backbones import QUERY_KEYS

from .reading import evaluation_mode

#: Modules of the parts within a detector, each counted with all that is in it
PARTS = dict(
    total=r'',
    backbone=r'\.backbone',
    # with the projections of stages, which stand beside it in lists
    interaction=r'\.backbone\.interaction(_(in|out)\.\d+)?',
)


@dataclass
class FlopCount:
    """Floating-point operations of one forward pass; a multiply-add counts as two.

    Attributes:
        total: All matrix products, convolutions and attention.
        backbone: Of these, in the backbone.
        interaction: Of these, in the interaction of queries and patches.
        by_operator: The total by operator.
        uncounted: How often operators from outside of PyTorch ran, such as
            torchvision's, for which no formula is known. Those that mmcv compiles
            bypass PyTorch's dispatcher and cannot be seen.
    """

    total: int
    backbone: int
    interaction: int
    by_operator: dict[str, int]
    uncounted: dict[str, int]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of the detector, its backbone and the backbone's interaction.

    ``total`` is what is deployed; a distiller, which only training needs, is counted
    apart.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    distiller = sum(n for k, n in sizes.items() if k.startswith('distiller.'))
    return dict(
        total=sum(sizes.values()) - distiller,
        distiller=distiller,
        backbone=sum(n for k, n in sizes.items() if k.startswith('backbone.')),
        interaction=sum(n for k, n in sizes.items() if k.startswith(QUERY_KEYS)),
    )


def count_flops(model: nn.Module, run: Callable[[], object]) -> FlopCount:
    """Count the operations of a forward pass in eval mode.

    Fused attention is switched off meanwhile: PyTorch's counter has no formula for
    the fused kernel of the CPU, and mmengine's analyser has none for attention.

    Args:
        model: What is run.
        run: Calls ``model(...)`` once.
    """
    foreign = _ForeignOperators()
    counter = FlopCounterMode(display=False)
    # the counter stumbles over views of parameters, which ask for gradients even
    # under no_grad
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH), counter, foreign:
            run()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    counts, root = counter.get_flop_counts(), type(model).__name__
    parts = {
        part: sum(
            sum(found.values())
            for name, found in counts.items()
            if re.fullmatch(root + modules, name)
        )
        for part, modules in PARTS.items()
    }
    return FlopCount(
        **parts,
        by_operator={str(op): n for op, n in counts.get('Global', {}).items()},
        uncounted=dict(foreign.seen),
    )


class _ForeignOperators(TorchDispatchMode):
    """Notes the operators that are not PyTorch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func.namespace not in ('aten', 'prim', 'prims'):
            self.seen[f'{func.namespace}::{func._schema.name.split("::")[-1]}'] += 1
        return func(*args, **(kwargs or {}))
