"""Models take turns, warm-up runs do not count, and ratios are those of each turn."""

import gc
import time

import pytest
import torch

from lfi_mmdet.evaluation import Spread, time_in_turns


def test_models_take_turns_and_the_warm_up_is_not_counted(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(time, 'perf_counter', lambda: float(next(clock)))
    seen = []

    def run(name, ticks):
        def work():
            seen.append(name)
            for _ in range(ticks):
                next(clock)

        return work

    a, b = time_in_turns([run('a', 4), run('b', 1)], repeat=3, warmup=2)
    assert seen == ['a', 'b'] * 5
    assert (a.values, b.values) == ([5.0] * 3, [2.0] * 3)


def test_in_a_turn_all_start_from_the_same_random_state():
    drawn = {'a': [], 'b': []}
    runs = [lambda name=name: drawn[name].append(torch.rand(1).item()) for name in 'ab']
    time_in_turns(runs, repeat=2, warmup=1, seed=3)
    assert drawn['a'] == drawn['b'] and len(set(drawn['a'])) == 3
    torch.manual_seed(4)
    assert drawn['a'][1] == torch.rand(1).item()


def test_garbage_is_collected_before_the_clock_starts(monkeypatch):
    alive = set()

    class Ring:
        def __init__(self):
            self.me = self
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    found = []

    def run():
        found.append((len(alive), gc.isenabled()))
        Ring()

    time_in_turns([run, run], repeat=2, warmup=0)
    assert found == [(0, False)] * 4
    assert gc.isenabled() and gc.get_freeze_count() == 0
    with pytest.raises(KeyError):
        time_in_turns([lambda: {}[0]], repeat=1)
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_median_and_quartiles():
    spread = Spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.median, spread.quartiles) == (3.0, (2.0, 4.0))
    assert Spread([7.0]).quartiles == (7.0, 7.0)
    assert spread.to_dict() == dict(
        median=3.0, low=2.0, high=4.0, values=[5.0, 1.0, 2.0, 4.0, 3.0]
    )


def test_a_ratio_compares_what_ran_in_the_same_turn():
    # a machine that gets slower and slower: the medians alone would say 1.5
    twin, lfi = Spread([1.0, 2.0, 4.0]), Spread([1.1, 3.0, 4.4])
    ratio = lfi.over(twin)
    assert ratio.values == pytest.approx([1.1, 1.5, 1.1])
    assert ratio.median == pytest.approx(1.1)
    with pytest.raises(ValueError, match='3 turns cannot be paired with 1'):
        twin.over(Spread([1.0]))


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match='repeat=0'):
        time_in_turns([], repeat=0)
