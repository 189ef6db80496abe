"""What a study file says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lfi_mmdet.engine.preflight import InputError

from .fields import check_keys, names, positive, seeds

FEEDS = ('backbone', 'load_from', 'nothing')
_NAME = re.compile(r'[A-Za-z0-9][\w+-]*')
_STUDY = (
    'name title seeds selection_seeds config options stage_options iterations '
    'val_interval keep_checkpoints settings arms groups compare bars'
)
_SETTING = (
    'title like scenes folder root train val labels tests config options '
    'stage_options iterations val_interval seeds'
)
_ARM = (
    'title config options stages twin seeds settings own_weights own_order own_schedule'
)


@dataclass(frozen=True)
class Stage:
    """A training before the detection, e.g. a pre-training.

    Args:
        name: For its folder and for ``{stage.NAME.checkpoint}``.
        config: Config file.
        options: ``--cfg-options``.
        iterations: Its length.
        feeds: Where its checkpoint goes in what follows: ``backbone`` (the backbone's
            ``init_cfg``), ``load_from``, or ``nothing`` (an option names it).
    """

    name: str
    config: str
    options: Mapping[str, Any]
    iterations: int
    feeds: str = 'backbone'


@dataclass(frozen=True)
class Arm:
    """One way to train; see ``docs/studies.md`` for the keys."""

    name: str
    title: str
    config: str | None
    options: Mapping[str, Any]
    stages: tuple[Stage, ...]
    twin: str | None
    seeds: tuple[int, ...] | None
    settings: tuple[str, ...] | None
    own_weights: tuple[str, ...] = ()
    own_order: bool = False
    own_schedule: bool = False

    @property
    def pretrain_iters(self) -> int:
        """Iterations of all its stages."""
        return sum(stage.iterations for stage in self.stages)


@dataclass(frozen=True)
class Setting:
    """Data, length and common options of a group of runs."""

    name: str
    title: str
    source: str
    scenes: Mapping[str, Any] | None
    folder: str | None
    root: str | None
    train: Mapping[str, str]
    val: Mapping[str, str]
    labels: float | int
    tests: Mapping[str, Mapping[str, Any]]
    config: str | None
    options: Mapping[str, Any]
    stage_options: Mapping[str, Any]
    iterations: int
    val_interval: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """A study file, checked."""

    name: str
    title: str
    path: Path
    options: Mapping[str, Any]
    stage_options: Mapping[str, Any]
    settings: Mapping[str, Setting]
    arms: Mapping[str, Arm]
    selection_seeds: tuple[int, ...] = ()
    keep_checkpoints: bool = False
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    compare: tuple[Any, ...] = ()
    bars: tuple[Any, ...] = ()

    def runs(self) -> list[tuple[Setting, Arm, int]]:
        """All runs; seed by seed, the twin first, so that pairs are early complete."""
        arms = sorted(self.arms.values(), key=lambda arm: arm.twin is not None)
        return [
            (setting, arm, seed)
            for setting in self.settings.values()
            for seed in (*self.selection_seeds, *setting.seeds)
            for arm in arms
            if arm.settings is None
            or setting.name in arm.settings
            or setting.source in arm.settings
            if arm.seeds is None or seed in arm.seeds
        ]


def read_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises:
        InputError: If it cannot be read, or something in it is wrong.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f'study {path}: {error.strerror}') from error
    except yaml.YAMLError as error:
        raise InputError(f'study {path} is no YAML: {error}') from error
    return parse_study(content, path)


def parse_study(content: Any, path: Path) -> Study:
    """Check the content of a study file; see :func:`read_study`."""
    given = check_keys(
        content, 'study', tuple(_STUDY.split()), ('name', 'settings', 'arms', 'seeds')
    )
    settings = _settings(given)
    arms = _arms(given, settings)
    for setting in settings.values():
        for arm in arms.values():
            if arm.config is None and setting.config is None:
                raise InputError(
                    f'arms.{arm.name} has no config, nor have settings.{setting.name} '
                    'and the study'
                )
    selection = seeds(given.get('selection_seeds', []), 'selection_seeds')
    for setting in settings.values():
        both = sorted(set(selection) & set(setting.seeds))
        if both:
            raise InputError(
                f'selection_seeds: {both} are also seeds of settings.{setting.name}; '
                'what was chosen on a seed is not to be measured on it'
            )
    groups = {
        name: names(members, f'groups.{name}', arms)
        for name, members in (given.get('groups') or {}).items()
    }
    from .bars import check_bars, check_compare  # they know their own keys

    study = Study(
        name=_name(given['name'], 'name'),
        title=given.get('title', given['name']),
        path=path,
        options=_options(given, 'study'),
        stage_options=_options(given, 'study', 'stage_options'),
        settings=settings,
        arms=arms,
        selection_seeds=selection,
        keep_checkpoints=bool(given.get('keep_checkpoints', False)),
        groups=groups,
    )
    return replace(
        study,
        compare=check_compare(given.get('compare') or [], study),
        bars=check_bars(given.get('bars') or [], study),
    )


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(
            f'{where}: {value!r} names folders; use letters, digits, _, + and -'
        )
    return value


def _options(
    given: Mapping[str, Any], where: str, key: str = 'options'
) -> Mapping[str, Any]:
    options = given.get(key) or {}
    if not isinstance(options, Mapping):
        raise InputError(
            f'{where}.{key}: {options!r} is no mapping of config keys to values'
        )
    return options


def label_amount(value: Any, where: str) -> float | int:
    """Read an amount of labels: ``10%`` or 0.1 is a share, 2 or more are images."""
    text = str(value)
    try:
        amount = float(text[:-1]) / 100 if text.endswith('%') else float(text)
    except ValueError:
        amount = -1.0
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return value
    if isinstance(value, bool) or not 0 < amount <= 1:
        raise InputError(
            f'{where}: {value!r} is no amount of labels; give a share such as 10% or '
            '0.1, or a number of images from 2 up'
        )
    return amount


def label_text(amount: float | int) -> str:
    """The amount as a part of a name: ``10pct`` or ``200img``."""
    return f'{amount}img' if isinstance(amount, int) else f'{100 * amount:g}pct'


def _settings(study: Mapping[str, Any]) -> dict[str, Setting]:
    known = tuple(_SETTING.split())
    raw: dict[str, dict[str, Any]] = {}
    if not isinstance(study['settings'], Mapping) or not study['settings']:
        raise InputError(f'settings: {study["settings"]!r} is no mapping of settings')
    for name, given in study['settings'].items():
        where = f'settings.{_name(name, "settings")}'
        own = dict(check_keys(given or {}, where, known))
        like = own.pop('like', None)
        if like is not None and like not in raw:
            raise InputError(f'{where}.like: {like!r} is none of {list(raw)} before it')
        base = dict(raw[like]) if like else {}
        merged = {
            key: {**base.get(key, {}), **_options(own, where, key)}
            for key in ('options', 'stage_options')
        }
        raw[name] = {**base, **own, **merged}
    settings: dict[str, Setting] = {}
    for name, given in raw.items():
        amounts = given.get('labels', 1.0)
        many = isinstance(amounts, list)
        for item in amounts if many else [amounts]:
            amount = label_amount(item, f'settings.{name}.labels')
            setting = _setting(name, given, amount, study, many)
            settings[setting.name] = setting
    return settings


def _setting(
    source: str,
    given: Mapping[str, Any],
    amount: float | int,
    study: Mapping[str, Any],
    many: bool,
) -> Setting:
    where = f'settings.{source}'
    if ('scenes' in given) == ('folder' in given):
        raise InputError(f'{where}: needs scenes (generated) or folder, one of them')
    tests = given.get('tests') or {}
    if not isinstance(tests, Mapping) or 'val' in tests:
        raise InputError(
            f'{where}.tests: {tests!r} is no mapping of names to sets; the name val '
            "is that of the setting's own"
        )
    for name, test in tests.items():
        keys = ('scenes',) if 'scenes' in given else ()
        check_keys(test, f'{where}.tests.{name}', (*keys, 'folder', 'ann_file', 'img'))

    def inherited(key: str) -> Any:
        value = given.get(key, study.get(key))
        if value is None:
            raise InputError(f'{where} has no {key}, nor has the study')
        return value

    text = label_text(amount)
    title = given.get('title', source)
    return Setting(
        name=f'{source}-{text}' if many else source,
        title=f'{title}, {text.replace("pct", "%").replace("img", " images")}'
        if many
        else title,
        source=source,
        scenes=given.get('scenes'),
        folder=given.get('folder'),
        root=given.get('root'),
        train=check_keys(given.get('train', {}), f'{where}.train', ('ann_file',)),
        val=check_keys(given.get('val', {}), f'{where}.val', ('ann_file', 'img')),
        labels=amount,
        tests=tests,
        config=given.get('config', study.get('config')),
        options=given['options'],
        stage_options=given['stage_options'],
        iterations=positive(inherited('iterations'), f'{where}.iterations'),
        val_interval=positive(inherited('val_interval'), f'{where}.val_interval'),
        seeds=seeds(given.get('seeds', study['seeds']), f'{where}.seeds'),
    )


def _arms(study: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Arm]:
    known = tuple(_ARM.split())
    given = study['arms']
    if not isinstance(given, Mapping) or not given:
        raise InputError(f'arms: {given!r} is no mapping of arms')
    for name, arm in given.items():
        check_keys(arm or {}, f'arms.{_name(name, "arms")}', known)
    marked = [name for name, arm in given.items() if (arm or {}).get('twin') is True]
    if len(marked) > 1:
        raise InputError(f'arms: twin: true is said of {marked}; mark one')
    sources = {setting.source: setting for setting in settings.values()}
    arms = {}
    for name, arm in given.items():
        arm, where = arm or {}, f'arms.{name}'
        twin = arm.get('twin', marked[0] if marked else None)
        twin = None if twin is True or twin is False else twin
        if twin is None and arm.get('twin') is None:
            raise InputError(
                f'{where} has no twin: mark one arm with twin: true, or name its twin, '
                'or say twin: false of an arm that is its own'
            )
        if twin is not None and (twin not in given or twin == name):
            raise InputError(
                f'{where}.twin: {twin!r} is none of {[n for n in given if n != name]}'
            )
        arms[name] = Arm(
            name=name,
            title=str(arm.get('title', name)),
            config=arm.get('config'),
            options=_options(arm, where),
            stages=_stages(arm.get('stages') or [], f'{where}.stages'),
            twin=twin,
            seeds=seeds(arm['seeds'], f'{where}.seeds') if 'seeds' in arm else None,
            settings=names(
                arm['settings'], f'{where}.settings', {**sources, **settings}
            )
            if 'settings' in arm
            else None,
            own_weights=tuple(arm.get('own_weights') or ()),
            own_order=bool(arm.get('own_order', False)),
            own_schedule=bool(arm.get('own_schedule', False)),
        )
    return arms


def _stages(given: Any, where: str) -> tuple[Stage, ...]:
    if not isinstance(given, list):
        raise InputError(f'{where}: {given!r} is no list of stages')
    stages = []
    for i, item in enumerate(given):
        key = f'{where}.{i}'
        known = ('name', 'config', 'options', 'iterations', 'feeds')
        item = check_keys(item, key, known, ('name', 'config', 'iterations'))
        feeds = item.get('feeds', 'backbone')
        if feeds not in FEEDS:
            raise InputError(f'{key}.feeds: {feeds!r} is none of {", ".join(FEEDS)}')
        stages.append(
            Stage(
                name=_name(item['name'], f'{key}.name'),
                config=item['config'],
                options=_options(item, key),
                iterations=positive(item['iterations'], f'{key}.iterations'),
                feeds=feeds,
            )
        )
    return tuple(stages)
