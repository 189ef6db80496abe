"""What a study asks of its arms, and the pairs of arms it compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lfi_mmdet.engine.preflight import InputError

from .fields import check_keys

if TYPE_CHECKING:
    from .plan import Study

METRICS = ('bbox_mAP', 'segm_mAP', 'iterations_ratio', 'iterations_ratio_with_pretrain')
INTERVALS = ('above_zero', 'covers_zero')
_COCO = re.compile(r'(bbox|segm)_mAP(_50|_75|_s|_m|_l)?')
BEST = re.compile(r'best of (\S+)')


@dataclass(frozen=True)
class Comparison:
    """One arm minus another.

    Args:
        arms: Names, or ``best of GROUP``.
        settings: Names of settings; empty for all.
    """

    arms: tuple[str, str]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A figure to reach.

    Args:
        name: What it is.
        arms: The first minus the second.
        setting: Name of a setting.
        metric: One of :data:`METRICS`, or a part of the mAP such as ``segm_mAP_50``.
        test: Evaluation set, or several joined by ``+`` for their mean.
        at_least: In points of mAP.
        at_most: For ratios of iterations.
        interval: One of :data:`INTERVALS`.
    """

    name: str
    arms: tuple[str, str]
    setting: str
    metric: str
    test: str = 'val'
    at_least: float | None = None
    at_most: float | None = None
    interval: str | None = None


def check_compare(given: Any, study: Study) -> tuple[Comparison, ...]:
    """Check the key ``compare`` of a study file."""
    if not isinstance(given, list):
        raise InputError(f'compare: {given!r} is no list of pairs of arms')
    pairs = []
    for i, item in enumerate(given):
        if isinstance(item, list):
            item = dict(arms=item)
        item = check_keys(item, f'compare.{i}', ('arms', 'settings'), ('arms',))
        settings = tuple(item.get('settings') or ())
        for name in settings:
            _check_setting(name, f'compare.{i}.settings', study)
        arms = _pair(item['arms'], f'compare.{i}.arms', study)
        pairs.append(Comparison(arms, settings))
    return tuple(pairs)


def check_bars(given: Any, study: Study) -> tuple[Bar, ...]:
    """Check the key ``bars`` of a study file."""
    if not isinstance(given, list):
        raise InputError(f'bars: {given!r} is no list')
    bars = []
    for i, item in enumerate(given):
        where = f'bars.{i}'
        known = tuple(Bar.__dataclass_fields__)
        item = check_keys(item, where, known, ('name', 'arms', 'setting', 'metric'))
        _check_setting(item['setting'], f'{where}.setting', study)
        tests = ['val', *study.settings[item['setting']].tests]
        if not set(str(item.get('test', 'val')).split('+')) <= set(tests):
            raise InputError(
                f'{where}.test: {item["test"]!r} is none of {tests}, nor several of '
                'them joined by +'
            )
        if item.get('interval') not in (None, *INTERVALS):
            raise InputError(
                f'{where}.interval: {item["interval"]!r} is none of {INTERVALS}'
            )
        metric = str(item['metric'])
        if metric not in METRICS and not _COCO.fullmatch(metric):
            raise InputError(
                f'{where}.metric: {metric!r} is none of {METRICS}, nor a part of '
                'these that CocoMetric gives, such as segm_mAP_50'
            )
        arms = item['arms'] if isinstance(item['arms'], list) else [item['arms']]
        if len(arms) == 1 and arms[0] in study.arms:
            arms = [arms[0], study.arms[arms[0]].twin]
        bar = Bar(**{**item, 'arms': _pair(arms, f'{where}.arms', study)})
        if bar.at_least is None and bar.at_most is None and bar.interval is None:
            raise InputError(f'{where} needs at_least, at_most or interval')
        bars.append(bar)
    return tuple(bars)


def _check_setting(name: Any, where: str, study: Study) -> None:
    if name not in study.settings:
        raise InputError(f'{where}: {name!r} is none of {", ".join(study.settings)}')


def _pair(given: Any, where: str, study: Study) -> tuple[str, str]:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        raise InputError(f'{where}: {given!r} is no pair of arms')
    for name in given:
        best = BEST.fullmatch(str(name))
        if best and best.group(1) not in study.groups:
            raise InputError(f'{where}: {name!r}, groups are {", ".join(study.groups)}')
        if not best and name not in study.arms:
            raise InputError(
                f'{where}: {name!r} is none of {", ".join(study.arms)}, nor is it '
                '"best of GROUP"'
            )
    return given[0], given[1]
