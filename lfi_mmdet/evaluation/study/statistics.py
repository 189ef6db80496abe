"""What paired runs allow to say."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: From so many pairs on the bootstrap corrects for bias and skewness
ENOUGH_FOR_BCA = 10


@dataclass(frozen=True)
class PairedDifference:
    """Differences of pairs.

    Args:
        n: Pairs.
        mean: Of the differences.
        bootstrap: 95% interval of the mean by resampling the pairs; None below two.
        method: ``percentile`` or ``BCa``.
        t: 95% interval of the mean by Student's t; None below two. With few pairs the
            bootstrap's is too narrow, and this one leans on normal differences.
        positive: Pairs with a positive difference.
        negative: Pairs with a negative one.
        sign_p: Two-sided sign test, ties left out; 1 if there are only ties.
    """

    n: int
    mean: float
    bootstrap: tuple[float, float] | None
    method: str
    t: tuple[float, float] | None
    positive: int
    negative: int
    sign_p: float


def paired_difference(differences: Sequence[float]) -> PairedDifference | None:
    """Summarise the differences of pairs; None if there are none.

    Args:
        differences: One per seed.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if not n:
        return None
    positive, negative = int((values > 0).sum()), int((values < 0).sum())
    untied = positive + negative
    sign_p = float(stats.binomtest(positive, untied).pvalue) if untied else 1.0
    constant = bool(np.ptp(values) == 0)
    method = 'BCa' if n >= ENOUGH_FOR_BCA and not constant else 'percentile'
    bootstrap = t = None
    if n > 1:
        mean = float(values.mean())
        if constant:
            bootstrap = t = (mean, mean)
        else:
            bootstrap = _bootstrap(values, method)
            low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            t = float(low), float(high)
    return PairedDifference(
        n, float(values.mean()), bootstrap, method, t, positive, negative, sign_p
    )


def _bootstrap(values: np.ndarray, method: str) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        interval = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=0.95,
            n_resamples=9999,
            method=method,
            random_state=0,
        ).confidence_interval
    return float(interval.low), float(interval.high)


def iterations_to_reach(curve: Mapping[int, float], target: float) -> float | None:
    """Iterations after which a curve first reaches a value.

    Interpolates linearly between evaluations, and from 0 at iteration 0: an untrained
    detector detects nothing.

    Args:
        curve: Value by iteration.
        target: The value.

    Returns:
        None if it is never reached.
    """
    before, low = 0, 0.0
    if target <= low:
        return 0.0
    for step in sorted(curve):
        value = curve[step]
        if value >= target:
            return before + (step - before) * (target - low) / (value - low)
        before, low = step, value
    return None


def mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean of curves at the iterations that all of them have."""
    if not curves:
        return {}
    steps = set.intersection(*(set(curve) for curve in curves))
    return {step: float(np.mean([c[step] for c in curves])) for step in sorted(steps)}


def spread(curves: Sequence[Mapping[int, float]]) -> dict[int, tuple[float, float]]:
    """Mean less and plus one standard deviation of curves; themselves if only one."""
    bands = {}
    for step, mean in mean_curve(curves).items():
        values = [curve[step] for curve in curves]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        bands[step] = mean - deviation, mean + deviation
    return bands
