"""Models take turns, warm-up runs do not count, and memory is each model's own."""

import time

import pytest
import torch
from torch import nn

from lfi_mmdet.evaluation import Timing, time_in_turns


def test_models_take_turns_and_the_warm_up_is_not_counted(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(time, 'perf_counter', lambda: float(next(clock)))
    seen = []

    def run(name, ticks):
        def work():
            seen.append(name)
            for _ in range(ticks):
                next(clock)

        return nn.Linear(1, 1), work

    a, b = time_in_turns([run('a', 4), run('b', 1)], repeat=3, warmup=2)
    assert seen == ['a', 'b'] * 5
    assert (a.times, b.times) == ([5.0] * 3, [2.0] * 3)
    assert a.peak_memory is None


def test_median_and_interquartile_range():
    timing = Timing([5.0, 1.0, 2.0, 4.0, 3.0], None)
    assert (timing.median, timing.spread) == (3.0, 2.0)
    assert Timing([7.0], None).spread == 0
    assert timing.to_dict()['median_s'] == 3.0


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match='repeat=0'):
        time_in_turns([], repeat=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_peak_memory_is_the_weights_of_one_model_and_what_it_allocates():
    small, large = (nn.Linear(n, n, bias=False).cuda() for n in (512, 2048))
    runs = [
        (model, lambda: torch.empty(2**20, device='cuda').sum().item())
        for model in (small, large)
    ]
    a, b = time_in_turns(runs, repeat=2, warmup=1)
    assert b.peak_memory - a.peak_memory == 4 * (2048**2 - 512**2)
    assert a.peak_memory >= 4 * 512**2 + 4 * 2**20
