"""Time several models fairly, in turns and in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm


@dataclass
class Timing:
    """Wall-clock times of one model.

    Attributes:
        times: Seconds per run, in the order of the runs.
        peak_memory: Most bytes allocated on the CUDA device during one run, weights
            included and the other models' weights left out; None on the CPU.
    """

    times: list[float]
    peak_memory: int | None

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Interquartile range in seconds."""
        if len(self.times) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times, n=4, method='inclusive')
        return high - low

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return dict(
            median_s=self.median,
            spread_s=self.spread,
            peak_memory=self.peak_memory,
            times_s=self.times,
        )


def time_in_turns(
    runs: Sequence[tuple[nn.Module, Callable[[], None]]],
    repeat: int,
    warmup: int = 2,
    progress: str | None = None,
) -> list[Timing]:
    """Time A, B, A, B, ... so that whatever drifts drifts for all alike.

    Args:
        runs: Per model, the model and what to time.
        repeat: Timed runs of each.
        warmup: Runs of each beforehand, not timed.
        progress: Title of a progress bar; None for no bar.

    Raises:
        ValueError: If nothing is to be timed.
    """
    if repeat < 1:
        raise ValueError(f'repeat={repeat} is less than 1')
    times: list[list[float]] = [[] for _ in runs]
    peaks: list[int | None] = [None for _ in runs]
    for turn in tqdm(
        range(-warmup, repeat), progress, ncols=70, disable=progress is None
    ):
        for i, (model, run) in enumerate(runs):
            device = next(model.parameters()).device
            before = _start_memory(device)
            start = time.perf_counter()
            run()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            elapsed = time.perf_counter() - start
            if turn < 0:
                continue
            times[i].append(elapsed)
            if before is not None:
                used = torch.cuda.max_memory_allocated(device) - before
                peaks[i] = max(peaks[i] or 0, used + _size(model))
    return [Timing(t, p) for t, p in zip(times, peaks)]


def _start_memory(device: torch.device) -> int | None:
    if device.type != 'cuda':
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _size(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
