"""Says whether the bars of a study are met."""

from __future__ import annotations

from typing import Any

from .summary import Summary

MET, MISSED, OPEN = 'met', 'missed', 'cannot be told'
#: Pairs below which no interval decides: a bootstrap of two pairs lies between the two
LEAST_PAIRS = 5
_RATIOS = {
    'iterations_ratio': 'ratio',
    'iterations_ratio_with_pretrain': 'ratio_with_pretrain',
}


def verdicts(summary: Summary) -> list[dict[str, Any]]:
    """Judge every bar: ``met``, ``missed`` or ``cannot be told``.

    Nothing is told before all runs of both arms have finished, diverged and failed
    ones included: what is left would be a choice of the runs that went well. Nor is
    anything said of an interval of fewer than five pairs.
    """
    return [_judge(bar, summary) for bar in summary.plan['bars']]


def _judge(bar: dict[str, Any], summary: Summary) -> dict[str, Any]:
    setting = bar['setting']
    first, second = (summary.choose(name, setting) for name in bar['arms'])
    told: dict[str, Any] = dict(bar, chosen=[first, second], n=0, why=[])
    if first is None or second is None:
        return dict(told, verdict=OPEN, why=['no finished run to choose the best by'])
    told['why'] = [
        *summary.undecided(setting, bar['arms']),
        *summary.pending(setting, (first, second)),
        *summary.unpaired(setting, first, second),
    ]
    if bar['metric'] in _RATIOS:
        race = summary.convergence(setting, first, second)
        value = None if race is None else race[_RATIOS[bar['metric']]]
        told.update(value=value, n=race['n'] if race else 0)
        if race is None or told['why']:
            return dict(told, verdict=OPEN)
        if not race['target']:
            return dict(told, verdict=OPEN, why=['the twin ends at 0'])
        if value is None:
            told['why'] = ["the twin's final value is not reached"]
            return dict(told, verdict=MISSED)
        return dict(told, verdict=_verdict(_limits(bar, value)))
    found = summary.difference(setting, first, second, bar['test'], bar['metric'])
    if found is None:
        return dict(told, value=None, verdict=OPEN)
    low_high = found['bootstrap']
    told.update(
        value=found['mean'], n=found['n'], interval_found=low_high, t=found['t']
    )
    if told['why']:
        return dict(told, verdict=OPEN)
    holds = _limits(bar, found['mean'])
    if bar['interval']:
        if low_high is None or found['n'] < LEAST_PAIRS:
            told['why'] = [
                f'an interval takes {LEAST_PAIRS} pairs; there are {found["n"]}'
            ]
            return dict(told, verdict=OPEN)
        holds.append(_interval_holds(bar['interval'], low_high))
        if holds[-1] != _interval_holds(bar['interval'], found['t']):
            told['why'] = ["Student's t interval says otherwise"]
    return dict(told, verdict=_verdict(holds))


def _limits(bar: dict[str, Any], value: float) -> list[bool]:
    holds = []
    if bar['at_least'] is not None:
        holds.append(value >= bar['at_least'])
    if bar['at_most'] is not None:
        holds.append(value <= bar['at_most'])
    return holds


def _interval_holds(kind: str, interval: tuple[float, float]) -> bool:
    low, high = interval
    return low > 0 if kind == 'above_zero' else low <= 0 <= high


def _verdict(holds: list[bool]) -> str:
    return MET if all(holds) else MISSED
