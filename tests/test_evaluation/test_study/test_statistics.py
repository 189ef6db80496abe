"""Statistics against cases computed by hand."""

import numpy as np
import pytest

from lfi_mmdet.evaluation.study.statistics import (
    iterations_to_reach,
    mean_curve,
    paired_difference,
    spread,
)


def test_mean_t_interval_and_sign_test_of_four_pairs():
    found = paired_difference([1.0, 2.0, 3.0, -2.0])
    assert found.n == 4 and found.mean == 1.0
    # s = sqrt((0 + 1 + 4 + 9) / 3), t(0.975; 3) = 3.182446
    half = 3.182446 * np.sqrt(14 / 3) / 2
    assert found.t == pytest.approx((1 - half, 1 + half), abs=1e-5)
    assert (found.positive, found.negative) == (3, 1)
    # 2 * (C(4, 0) + C(4, 1)) / 2 ** 4
    assert found.sign_p == pytest.approx(0.625)


def test_the_bootstrap_interval_of_two_pairs_is_between_their_differences():
    # resamples have means 1, 2 and 3 with shares 1/4, 1/2 and 1/4
    found = paired_difference([1.0, 3.0])
    assert found.method == 'percentile' and found.bootstrap == (1.0, 3.0)


def test_the_bootstrap_interval_of_many_pairs_is_near_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = paired_difference(values)
    half = 1.96 * values.std() / 20
    assert found.method == 'BCa'
    assert found.bootstrap == pytest.approx(
        (found.mean - half, found.mean + half), abs=0.02
    )
    assert paired_difference(values) == found


def test_ties_count_for_no_side():
    found = paired_difference([0.0, 0.0, 1.0, 1.0])
    assert (found.positive, found.negative, found.sign_p) == (2, 0, 0.5)
    same = paired_difference([0.0, 0.0])
    assert same.sign_p == 1.0 and same.bootstrap == same.t == (0.0, 0.0)


def test_one_pair_has_no_interval_and_none_has_nothing():
    found = paired_difference([1.5])
    assert (found.n, found.mean, found.bootstrap, found.t) == (1, 1.5, None, None)
    assert paired_difference([]) is None


@pytest.mark.parametrize(
    ('target', 'iterations'),
    [(0.05, 5), (0.1, 10), (0.15, 15), (0.2, 20), (0.3, None), (0.0, 0)],
)
def test_iterations_are_interpolated_from_nothing_at_the_start(target, iterations):
    found = iterations_to_reach({20: 0.2, 10: 0.1}, target)
    assert found == (None if iterations is None else pytest.approx(iterations))


def test_the_first_time_counts_though_the_curve_falls_again():
    assert iterations_to_reach({10: 0.4, 20: 0.2, 30: 0.4}, 0.2) == pytest.approx(5)


def test_curves_are_averaged_where_all_were_evaluated():
    curves = [{10: 1.0, 20: 2.0, 30: 9.0}, {10: 3.0, 20: 2.0}]
    assert mean_curve(curves) == {10: 2.0, 20: 2.0}
    assert spread(curves)[10] == pytest.approx((2 - 2**0.5, 2 + 2**0.5))
    assert spread(curves[:1])[30] == (9.0, 9.0)
    assert mean_curve([]) == {}
