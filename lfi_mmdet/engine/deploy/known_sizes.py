"""Keeps sizes known that mmdet puts into tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves


class KnownSizes(TorchFunctionMode):
    """While a graph is recorded, computes at once whatever follows from sizes alone.

    Detectors with deformable attention have the sizes of their feature maps in a tensor
    and read numbers from it, to split and to reshape. A recorder knows no values of
    tensors. For one size of image they are constants: here they stay real tensors, and
    so does what is made of nothing else, such as reference points.
    """

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._shape_as_tensor:
            with no_dispatch():
                return torch.tensor(list(args[0].shape))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        unknown = any(isinstance(x, (FakeTensor, torch.nn.Parameter)) for x in tensors)
        if not tensors or unknown:
            return func(*args, **kwargs)
        with no_dispatch():
            return func(*args, **kwargs)
