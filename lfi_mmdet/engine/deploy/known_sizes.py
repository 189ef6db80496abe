"""Keeps sizes known that mmdet puts into tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map_only


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
        known = [_is_known(x) for x in tensors]
        if not any(known):
            return func(*args, **kwargs)
        if all(known):
            with no_dispatch():
                return func(*args, **kwargs)
        if _writes(func, kwargs) and _is_known(kwargs.get('out', tensors[0])):
            raise ValueError(
                f'{func.__name__} writes what follows from the picture into a tensor '
                'that follows from its size'
            )
        # a graph holds the tensor itself, and has to hold it as it is now
        args, kwargs = tree_map_only(_is_known, _copied, (args, kwargs))
        return func(*args, **kwargs)


def _is_known(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(
        value, (FakeTensor, torch.nn.Parameter)
    )


def _copied(tensor: Tensor) -> Tensor:
    with no_dispatch():
        return tensor.clone()


def _writes(func: Callable, kwargs: dict[str, Any]) -> bool:
    name = getattr(func, '__name__', '')
    in_place = name.endswith('_') and not name.endswith('__')
    return in_place or name == '__setitem__' or kwargs.get('out') is not None
