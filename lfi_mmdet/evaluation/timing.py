"""Time several models fairly, in turns and in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.runner import set_random_seed
from tqdm import tqdm


@dataclass
class Spread:
    """Repeated measurements of one thing, in the order of the turns.

    Attributes:
        values: Seconds, bytes or ratios.
    """

    values: list[float]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile; twice the value if there is only one."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method='inclusive')
        return low, high

    def over(self, base: Spread) -> Spread:
        """Ratios to what another took in the same turn.

        What slows a turn down slows both, so these ratios spread less than the
        quotient of two medians would make one think.

        Raises:
            ValueError: If the two did not take the same number of turns.
        """
        if len(self.values) != len(base.values):
            raise ValueError(
                f'{len(self.values)} turns cannot be paired with {len(base.values)}'
            )
        return Spread([a / b for a, b in zip(self.values, base.values)])

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        low, high = self.quartiles
        return dict(median=self.median, low=low, high=high, values=self.values)


def time_in_turns(
    runs: Sequence[Callable[[], object]],
    repeat: int,
    warmup: int = 2,
    seed: int = 0,
    device: torch.device | str = 'cpu',
    progress: str | None = None,
) -> list[Spread]:
    """Time A, B, A, B, ... so that whatever drifts drifts for all alike.

    Before every run, and not timed, garbage is collected, and in each turn all start
    from the same random state. The collector is off meanwhile.

    Args:
        runs: What to time.
        repeat: Timed runs of each.
        warmup: Runs of each beforehand, not timed.
        seed: Of the first turn; each turn has its own.
        device: Where the work is done; a CUDA device is waited for.
        progress: Title of a progress bar; None for no bar.

    Returns:
        Seconds, one per turn.

    Raises:
        ValueError: If nothing is to be timed.
    """
    if repeat < 1:
        raise ValueError(f'repeat={repeat} is less than 1')
    device = torch.device(device)
    times: list[list[float]] = [[] for _ in runs]
    with garbage_apart():
        for turn in tqdm(
            range(warmup + repeat), progress, ncols=70, disable=progress is None
        ):
            for i, run in enumerate(runs):
                gc.collect()
                set_random_seed(seed + turn)
                synchronize(device)
                start = time.perf_counter()
                run()
                synchronize(device)
                elapsed = time.perf_counter() - start
                if turn >= warmup:
                    times[i].append(elapsed)
    return [Spread(values) for values in times]


@contextmanager
def garbage_apart() -> Iterator[None]:
    """Collect garbage only when told to, and quickly.

    What is there at the start is no garbage, and is not searched again.
    """
    collects = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device; nothing for others."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
