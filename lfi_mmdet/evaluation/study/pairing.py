"""Reads results as runs, and sees to it that what is compared can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfi_mmdet.engine.preflight import InputError

from .results import Line, Results

Metrics = dict[str, float]

#: What a run and its twin must have in common, and how to call it. What is None in one
#: of them, as of a run that failed before its first iteration, is not compared.
_SHARED = {
    'iterations': 'iterations',
    'points': 'evaluated at iterations',
    'start_weights_hash': 'start weights (sha256)',
}


class PairingError(InputError):
    """An arm and its twin differ in more than the arm."""


@dataclass
class Run:
    """One run that came to an end.

    Args:
        line: Its last line.
        curve: Metrics on the validation set by iteration.
        attempts: Last lines of earlier attempts, which were run again on request.
    """

    line: Line
    curve: dict[int, Metrics]
    attempts: list[Line] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether it reached its end."""
        return self.line['status'] == 'finished'

    def metric(self, test: str, name: str) -> float | None:
        """Final value of a metric, None if there is none.

        Args:
            test: An evaluation set, or several joined by ``+`` for their mean.
            name: Of the metric.
        """
        if not self.finished:
            return None
        metrics = self.line['metrics']
        sets = [metrics.get(part) or {} for part in test.split('+')]
        if not all(name in found for found in sets):
            return None
        return sum(found[name] for found in sets) / len(sets)


@dataclass
class StudyResults:
    """A study as its result files tell it.

    Args:
        plan: The line that says what there is to run.
        runs: By setting, arm and seed.
        stages: Last line of every stage, by id.
        left_out: Ids of runs that the plan does not have any more.
    """

    plan: Line
    runs: dict[tuple[str, str, int], Run]
    stages: dict[str, Line]
    left_out: list[str] = field(default_factory=list)

    def fed_by_another(self, run: Run) -> list[str]:
        """Stages that were trained again since, to other weights than it was fed."""
        fed = run.line.get('fed_weights') or {}
        now = {key: self.stages.get(key, {}).get('weights_sha256') for key in fed}
        return [key for key in fed if now[key] not in (None, fed[key])]

    def planned_seeds(self, setting: str, arm: str) -> list[int]:
        """Seeds that an arm is to be run with, without those for selection."""
        selection = set(self.plan['selection_seeds'])
        return [
            run['seed']
            for run in self.plan['runs']
            if (run['setting'], run['arm']) == (setting, arm)
            and run['seed'] not in selection
        ]

    def selection_runs(self, setting: str) -> list[tuple[str, int]]:
        """Arm and seed of the runs that ways and weights are chosen by."""
        selection = set(self.plan['selection_seeds'])
        return [
            (run['arm'], run['seed'])
            for run in self.plan['runs']
            if run['setting'] == setting and run['seed'] in selection
        ]

    def arms(self, setting: str) -> list[str]:
        """Arms of a setting, in the order of the study file."""
        planned = {r['arm'] for r in self.plan['runs'] if r['setting'] == setting}
        return [arm for arm in self.plan['arms'] if arm in planned]


def read_results(paths: Sequence[str | Path]) -> StudyResults:
    """Read one or more files of results of one study.

    Raises:
        InputError: If a file is missing, they are of different studies, or one run is
            in two of them with different outcomes.
    """
    plan: Line | None = None
    runs: dict[tuple[str, str, int], Run] = {}
    stages: dict[str, Line] = {}
    origin: dict[str, str] = {}
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f'results {path}: no such file')
        lines = Results(path).read()
        plans = [line for line in lines if line.get('kind') == 'plan']
        if not plans:
            raise InputError(f'results {path}: no line of kind plan; is it a study?')
        if plan is not None and plan['study'] != plans[-1]['study']:
            raise InputError(
                f'results of two studies, {plan["study"]} and {plans[-1]["study"]}; '
                'make one report for each'
            )
        if plan is not None and _asked(plan) != _asked(plans[-1]):
            raise InputError(
                f'results {path}: its study file was another one than that of the '
                'results before (arms, settings, seeds or bars differ); run '
                'tools/study.py --list with the same file on both first'
            )
        plan = plans[-1]
        for end in lines:
            if not end.get('final') or end.get('superseded'):
                continue
            if end['kind'] == 'stage':
                stages[end['id']] = end
                continue
            key = end['setting'], end['arm'], end['seed']
            run = _run(end, lines)
            if key in runs and runs[key].line != end:
                raise InputError(
                    f'run {end["id"]} is in {origin[end["id"]]} and in {path}, with '
                    'different lines; leave one out'
                )
            runs[key], origin[end['id']] = run, str(path)
    if plan is None:
        raise InputError('no file of results given')
    known = {(run['setting'], run['arm'], run['seed']) for run in plan['runs']}
    return StudyResults(
        plan,
        {key: run for key, run in runs.items() if key in known},
        stages,
        sorted(run.line['id'] for key, run in runs.items() if key not in known),
    )


def _asked(plan: Line) -> Line:
    return {key: value for key, value in plan.items() if key != 'command'}


def _run(end: Line, lines: Sequence[Line]) -> Run:
    own = [line for line in lines if line.get('id') == end['id']]
    return Run(
        line=end,
        curve={
            line['iteration']: line['metrics']['val']
            for line in own
            if not line.get('superseded') and line['metrics']
        },
        attempts=[line for line in own if line.get('superseded') and line.get('final')],
    )


def check_pairs(results: StudyResults) -> None:
    """Refuse arms whose twins do not match.

    Raises:
        PairingError: If a run and its twin differ in data, schedule, start weights or
            order of the images, the twin is not run with this seed, or the runs of an
            arm differ in more than their seeds.
    """
    _check_recipes(results)
    for (setting, arm, seed), run in results.runs.items():
        facts = results.plan['arms'][arm]
        twin = facts['twin']
        if twin is None:
            continue
        planned = {
            r['seed']
            for r in results.plan['runs']
            if (r['setting'], r['arm']) == (setting, twin)
        }
        if seed not in planned:
            raise PairingError(
                f'{setting}: arm {arm} has seed {seed}, its twin {twin} has '
                f'{sorted(planned)}'
            )
        other = results.runs.get((setting, twin, seed))
        if other is not None:
            _check_pair(run.line, other.line, facts)


def _check_recipes(results: StudyResults) -> None:
    first: dict[tuple[str, str], Line] = {}
    for (setting, arm, _), run in results.runs.items():
        recipe = run.line.get('recipe_hash')
        if recipe is None:
            continue  # written before recipes were
        other = first.setdefault((setting, arm), run.line)
        if other['recipe_hash'] != recipe:
            raise PairingError(
                f'{run.line["id"]} and {other["id"]} are of one arm, but trained with '
                'different configs or other files (recipe, sha256: '
                f'{recipe[:12]} and {other["recipe_hash"][:12]}); run one of them '
                'again with --redo changed'
            )


def _check_pair(run: Line, twin: Line, facts: Mapping[str, Any]) -> None:
    told = dict(_SHARED)
    if drawn_elsewhere(run, twin):
        del told['start_weights_hash']  # no pair, see there
    if not facts['own_schedule']:
        told['schedule_hash'] = (
            'optimizer and learning-rate schedule (sha256; own_schedule: true of the '
            'arm allows it)'
        )
    allows = 'own_order: true of the arm allows it'
    if not facts['own_order']:
        told['batch_size'] = f'labelled images of a batch ({allows})'
    both_finished = run['status'] == twin['status'] == 'finished'
    if both_finished and not facts['own_order']:
        told['labelled_images_seen'] = f'labelled images seen ({allows})'
        told['order_hash'] = f'order of the labelled images (sha256; {allows})'
    for key, name in told.items():
        _compare(run, twin, name, run.get(key), twin.get(key))
    data, other = run['data_hash'], twin['data_hash']
    for part in {**data, **other}:
        _compare(run, twin, f'data, {part} (sha256)', data.get(part), other.get(part))


def drawn_elsewhere(run: Line, twin: Line) -> bool:
    """Whether start weights differ that two kinds of processors drew.

    Processors with other instructions draw other last bits under the same seed, and so
    other digests. Digests cannot tell whether that is all, so such runs are no pair:
    each counts for its own arm, but they are not compared.
    """
    first, second = run.get('start_weights_hash'), twin.get('start_weights_hash')
    if first is None or second is None or first == second:
        return False
    return run['machine']['cpu'] != twin['machine']['cpu']


def _compare(run: Line, twin: Line, name: str, value: Any, other: Any) -> None:
    if value is None or other is None or value == other:
        return
    if isinstance(value, str) and len(value) == 64:
        value, other = value[:12], other[:12]
    raise PairingError(
        f'{run["id"]} does not match its twin {twin["id"]} in: {name}: {value}, the '
        f'twin has {other}'
    )
