"""The weight of the distillation over the training."""

import pytest
from mmengine.logging import MessageHub

from lfi_mmdet.models.distillers import LossSchedule


def test_warm_up_rises_to_one_and_stays():
    schedule = LossSchedule(warmup=4)
    assert [schedule.factor(i, 100) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_from_stop_on_it_is_zero():
    schedule = LossSchedule(stop=3)
    assert [schedule.factor(i, 100) for i in range(5)] == [1, 1, 1, 0, 0]


def test_fractions_are_shares_of_the_training():
    schedule = LossSchedule(warmup=0.5, stop=0.75)
    assert [schedule.factor(i, 8) for i in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 0, 0]


def test_with_an_interval_the_first_of_so_many_iterations_counts():
    schedule = LossSchedule(interval=3, stop=7)
    assert [schedule.factor(i, 100) for i in range(9)] == [1, 0, 0, 1, 0, 0, 1, 0, 0]
    schedule = LossSchedule(interval=2, warmup=4)  # the warm-up goes on in between
    assert [schedule.factor(i, 100) for i in range(6)] == [0.25, 0, 0.75, 0, 1, 0]


def test_a_float_of_one_is_the_whole_training_and_an_integer_one_iteration():
    assert LossSchedule(stop=1.0).factor(99, 100) == 1
    assert LossSchedule(stop=1).factor(1, 100) == 0
    assert LossSchedule(warmup=1.0).factor(49, 100) == 0.5


def test_a_stop_before_the_end_of_the_warmup_is_refused_in_any_units():
    with pytest.raises(ValueError, match=r'stop=3 is iteration 3 of 100.* at 50'):
        LossSchedule(warmup=0.5, stop=3).factor(0, 100)


def test_it_follows_the_runner_and_is_constant_outside_of_one():
    schedule = LossSchedule(warmup=10)
    hub = MessageHub.get_current_instance()
    assert schedule.current() == 1
    hub.update_info('iter', 4)
    hub.update_info('max_iters', 100)
    assert schedule.current() == 0.5


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(warmup=-1), dict(warmup=2.5), dict(stop=-0.5), dict(warmup=9, stop=5),
        dict(interval=0), dict(interval=0.5),
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused(kwargs):
    with pytest.raises(ValueError, match='distiller.schedule'):
        LossSchedule(**kwargs)
