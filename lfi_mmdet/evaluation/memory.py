"""How much memory a piece of work needs, on the CPU as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from .timing import synchronize


def peak_memory(run: Callable[[], object], device: torch.device | str = 'cpu') -> int:
    """Most bytes that were allocated at once, beyond those allocated at the start.

    On CUDA the allocator keeps the number. On the CPU it does not; there the profiler
    reports every tensor that comes and goes, which slows the work down, so never time
    it meanwhile. What libraries such as oneDNN allocate for themselves is not seen.

    Args:
        run: The work.
        device: Where its tensors are.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # its result is left as it was recorded: making sense of the operators takes long
    with profile(profile_memory=True) as profiler:
        run()
    recorded: Any = profiler.kineto_results
    events = [event for event in recorded.events() if event.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors keep; those that share their storage count once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
