"""Mixed precision on machines that mmengine's ``AmpOptimWrapper`` refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn

from .preflight import InputError

#: Devices that AmpOptimWrapper trains on
AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')
_ONLY_AMP = ('loss_scale', 'dtype', 'use_fsdp')


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Train under autocast in bfloat16, on the CPU as well.

    bfloat16 has the range of float32, so no loss is scaled, and no ``GradScaler`` is
    needed, which the CPU has not.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, besides what :class:`mmengine.optim.OptimWrapper` does."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def choose_precision(cfg: Config, amp: bool) -> str | None:
    """Make ``optim_wrapper`` fit the flag ``--amp`` and this machine.

    Where ``AmpOptimWrapper`` can train, ``--amp`` selects it and nothing else is
    changed. A CPU without special instructions is slower in bfloat16 than in float32,
    so there a config with ``AmpOptimWrapper`` trains in float32, unless ``--amp`` asks
    for bfloat16.

    Args:
        cfg: Config of the run, changed in place.
        amp: Whether mixed precision was asked for on the command line.

    Returns:
        What was decided, for the log; None if the config stays as it is.

    Raises:
        InputError: If mixed precision is asked for with another optimizer wrapper.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    kind = (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]
    if kind == BFloat16OptimWrapper.__name__:
        return None
    if amp and kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise InputError(
            f'--amp: optim_wrapper.type={kind!r} has no mixed precision; choose from '
            "['OptimWrapper', 'AmpOptimWrapper']"
        )
    device = get_device()
    if device in AMP_DEVICES:
        if amp and kind == 'OptimWrapper':
            wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
        return None
    if not amp and kind != 'AmpOptimWrapper':
        return None
    for name in _ONLY_AMP:
        wrapper.pop(name, None)
    if amp and device == 'cpu':
        wrapper.type = f'{__name__}.{BFloat16OptimWrapper.__name__}'
        return '--amp without a GPU: autocast in bfloat16 on the CPU, no loss scaling'
    wrapper.type = 'OptimWrapper'
    return (
        f'no device for AmpOptimWrapper (found {device!r}, it needs one of '
        f'{AMP_DEVICES}): training in float32'
        + (
            '; --amp gives bfloat16, which most CPUs do slower'
            if device == 'cpu'
            else ''
        )
    )
