"""Turns the runs of a study into the numbers of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .bars import BEST
from .pairing import Run, StudyResults, drawn_elsewhere
from .statistics import (
    iterations_to_reach,
    mean_curve,
    paired_difference,
    spread,
)

MAIN_METRICS = ('bbox_mAP', 'segm_mAP')
#: The metric whose final value of the twin is to be reached
GOAL = 'segm_mAP'


class Summary:
    """Numbers of a study; call :func:`check_pairs` first.

    Values of mAP are in points, from 0 to 100.

    Args:
        results: Of the study.
    """

    def __init__(self, results: StudyResults) -> None:
        self.results, self.plan = results, results.plan

    def settings(self) -> dict[str, dict[str, Any]]:
        """All arms of all settings."""
        return {
            name: dict(
                title=facts['title'],
                iterations=facts['iterations'],
                tests=facts['tests'],
                selection=self.selection(name),
                arms={
                    arm: self.arm(name, arm)
                    for arm in self.results.arms(name)
                    if self.seeds(name, arm)
                },
            )
            for name, facts in self.plan['settings'].items()
        }

    def comparisons(self) -> list[dict[str, Any]]:
        """The pairs of arms that the study names, in each of their settings."""
        told = []
        for item in self.plan['compare']:
            names = item['settings'] or [*self.plan['settings']]
            for setting in names:
                first, second = (self.choose(name, setting) for name in item['arms'])
                entry: dict[str, Any] = dict(
                    setting=setting, arms=item['arms'], chosen=[first, second]
                )
                if first is not None and second is not None:
                    tests = self.plan['settings'][setting]['tests']
                    entry['pending'] = [
                        *self.undecided(setting, item['arms']),
                        *self.pending(setting, (first, second)),
                        *self.unpaired(setting, first, second),
                    ]
                    entry['metrics'] = {
                        test: {
                            metric: self.difference(
                                setting, first, second, test, metric
                            )
                            for metric in MAIN_METRICS
                        }
                        for test in tests
                    }
                told.append(entry)
        return told

    # -- parts -------------------------------------------------------------------------
    def run(self, setting: str, arm: str, seed: int) -> Run | None:
        """A run, None if it has not come to its end."""
        return self.results.runs.get((setting, arm, seed))

    def seeds(self, setting: str, arm: str) -> list[int]:
        """Seeds of an arm that count."""
        return self.results.planned_seeds(setting, arm)

    def arm(self, setting: str, name: str) -> dict[str, Any]:
        """What became of an arm, its means, and how it differs from its twin."""
        facts = self.plan['arms'][name]
        twin = facts['twin']
        seeds = self.seeds(setting, name)
        runs = [self.run(setting, name, seed) for seed in seeds]
        ended = [run for run in runs if run is not None]
        tests = self.plan['settings'][setting]['tests']
        curves = self.curves(setting, name, seeds)
        told: dict[str, Any] = dict(
            title=facts['title'],
            twin=twin,
            pretrain_iters=facts['pretrain_iters'],
            seeds=seeds,
            planned=len(seeds),
            **{
                status: sum(run.line['status'] == status for run in ended)
                for status in ('finished', 'diverged', 'failed')
            },
            problems=[
                dict(seed=run.line['seed'], status=run.line['status'],
                     iteration=run.line['iteration'], reason=run.line['reason'])
                for run in ended if not run.finished
            ],
            earlier_attempts=[
                dict(seed=line['seed'], status=line['status'], reason=line['reason'])
                for run in ended for line in run.attempts
            ],
            notes=[
                *self._notes(name, ended),
                *(self.unpaired(setting, name, twin) if twin else ()),
            ],
            metrics={
                test: {
                    metric: self.mean(setting, name, test, metric)
                    for metric in MAIN_METRICS
                }
                for test in tests
            },
            curves={metric: mean_curve(curves[metric]) for metric in MAIN_METRICS},
            bands={metric: spread(curves[metric]) for metric in MAIN_METRICS},
        )  # fmt: skip
        if twin is not None:
            told['minus_twin'] = {
                test: {
                    metric: self.difference(setting, name, twin, test, metric)
                    for metric in MAIN_METRICS
                }
                for test in tests
            }
            told['convergence'] = self.convergence(setting, name, twin)
        return told

    def mean(
        self, setting: str, arm: str, test: str, metric: str
    ) -> dict[str, Any] | None:
        """Mean over the finished runs of an arm."""
        values = {}
        for seed in self.seeds(setting, arm):
            run = self.run(setting, arm, seed)
            value = run.metric(test, metric) if run else None
            if value is not None:
                values[seed] = 100 * value
        if not values:
            return None
        found = [*values.values()]
        return dict(
            n=len(found),
            mean=float(np.mean(found)),
            std=float(np.std(found, ddof=1)) if len(found) > 1 else None,
            by_seed=values,
        )

    def difference(
        self,
        setting: str,
        arm: str,
        other: str,
        test: str,
        metric: str,
        seeds: Sequence[int] | None = None,
    ) -> dict[str, Any] | None:
        """Paired difference of two arms over the seeds that both have finished."""
        by_seed = {}
        for seed, (run, twin) in self.pairs(setting, arm, other, seeds).items():
            value, its = run.metric(test, metric), twin.metric(test, metric)
            if value is not None and its is not None:
                by_seed[seed] = 100 * (value - its)
        found = paired_difference([*by_seed.values()])
        return None if found is None else dict(asdict(found), by_seed=by_seed)

    def pairs(
        self,
        setting: str,
        arm: str,
        other: str,
        seeds: Sequence[int] | None = None,
    ) -> dict[int, tuple[Run, Run]]:
        """Runs of two arms that may be compared, by seed."""
        found = {}
        for seed in self.seeds(setting, arm) if seeds is None else seeds:
            run, twin = (self.run(setting, name, seed) for name in (arm, other))
            if run and twin and not drawn_elsewhere(run.line, twin.line):
                found[seed] = run, twin
        return found

    def unpaired(self, setting: str, arm: str, other: str) -> list[str]:
        """Why ended runs of two arms are not compared."""
        paired = self.pairs(setting, arm, other)
        left = [
            seed
            for seed in self.seeds(setting, arm)
            if seed not in paired
            and all(self.run(setting, name, seed) for name in (arm, other))
        ]
        if not left:
            return []
        return [
            f'{arm}, seeds {", ".join(map(str, left))}: start weights differ from '
            f'those of {other}, which another processor drew; not compared'
        ]

    def pending(self, setting: str, arms: Sequence[str]) -> list[str]:
        """Why nothing final can be said of some arms: what is open or went wrong."""
        reasons = []
        for arm in arms:
            runs = {
                seed: self.run(setting, arm, seed) for seed in self.seeds(setting, arm)
            }
            open_ = sum(run is None for run in runs.values())
            if not runs:
                reasons.append(f'{arm}: no runs in {setting}')
            if open_:
                reasons.append(f'{arm}: {open_} of {len(runs)} runs not finished')
            for status in ('diverged', 'failed'):
                count = sum(
                    run is not None and run.line['status'] == status
                    for run in runs.values()
                )
                if count:
                    reasons.append(f'{arm}: {count} of {len(runs)} runs {status}')
        return reasons

    def curves(
        self, setting: str, arm: str, seeds: Sequence[int]
    ) -> dict[str, list[dict[int, float]]]:
        """Convergence of the finished runs, in points, by metric."""
        runs = [self.run(setting, arm, seed) for seed in seeds]
        return {
            metric: [
                {step: 100 * m[metric] for step, m in run.curve.items() if metric in m}
                for run in runs
                if run is not None and run.finished
            ]
            for metric in MAIN_METRICS
        }

    def convergence(self, setting: str, arm: str, twin: str) -> dict[str, Any] | None:
        """Iterations until the mean curve is where that of the twin ends.

        The twin's own iterations are those at which it first is there, so a twin that
        had converged early is no easy mark.
        """
        both = [
            seed
            for seed, pair in self.pairs(setting, arm, twin).items()
            if all(run.finished for run in pair)
        ]
        if not both:
            return None
        mine = self.curves(setting, arm, both)[GOAL]
        theirs = self.curves(setting, twin, both)[GOAL]
        pretrain = self.plan['arms'][arm]['pretrain_iters']
        mean = _race(mean_curve(mine), mean_curve(theirs), pretrain)
        races = [_race(a, b, pretrain) for a, b in zip(mine, theirs, strict=True)]
        return dict(
            mean,
            n=len(both),
            reached_by=sum(race['iterations'] is not None for race in races),
            by_seed=dict(zip(both, races, strict=True)),
        )

    def choose(self, name: str, setting: str) -> str | None:
        """An arm by its name, or the best of a group.

        The best has the highest mean of the final mask mAP on the seeds for selection,
        which count for nothing else; without such seeds on those of the report.

        Returns:
            None if no member of the group has a finished run there.
        """
        best = BEST.fullmatch(name)
        if not best:
            return name
        members = [
            arm
            for arm in self.plan['groups'][best.group(1)]
            if arm in self.results.arms(setting)
        ]
        means = {}
        for arm in members:
            seeds = self.plan['selection_seeds'] or self.seeds(setting, arm)
            runs = [self.run(setting, arm, seed) for seed in seeds]
            values = [run.metric('val', GOAL) if run else None for run in runs]
            found = [value for value in values if value is not None]
            # one that diverged on such a seed is not the best
            if found and len(found) == len(values):
                means[arm] = float(np.mean(found))
        return max(means, key=lambda arm: means[arm]) if means else None

    def undecided(self, setting: str, names: Sequence[str]) -> list[str]:
        """Members of groups that could yet turn out to be their best.

        One that diverged where the best is chosen is none of them; :meth:`selection`
        shows it.
        """
        reasons = []
        for name in names:
            best = BEST.fullmatch(name)
            for arm in self.plan['groups'][best.group(1)] if best else ():
                if arm not in self.results.arms(setting):
                    continue
                for seed in self.plan['selection_seeds'] or self.seeds(setting, arm):
                    run = self.run(setting, arm, seed)
                    if run is None or run.line['status'] == 'failed':
                        state = 'not finished' if run is None else 'failed'
                        reasons.append(f'{name}: {arm}, seed {seed} {state}')
        return reasons

    def selection(self, setting: str) -> list[dict[str, Any]]:
        """What ways and weights were chosen by: the runs on the selection seeds."""
        chosen = {
            self.choose(f'best of {group}', setting) for group in self.plan['groups']
        }
        told = []
        for arm, seed in self.results.selection_runs(setting):
            run = self.run(setting, arm, seed)
            told.append(
                dict(
                    arm=arm,
                    title=self.plan['arms'][arm]['title'],
                    seed=seed,
                    status='not finished' if run is None else run.line['status'],
                    reason=run.line['reason'] if run else None,
                    chosen=arm in chosen,
                    metrics={
                        metric: None if value is None else 100 * value
                        for metric in MAIN_METRICS
                        for value in [run.metric('val', metric) if run else None]
                    },
                )
            )
        return told

    def _notes(self, name: str, ended: Sequence[Run]) -> list[str]:
        notes = []
        facts = self.plan['arms'][name]
        if facts['own_order']:
            seen = {
                round(run.line['labelled_images_seen'] / run.line['iterations'], 2)
                for run in ended
                if run.finished
            }
            counts = ', '.join(map(str, sorted(seen))) or '?'
            notes.append(
                f'draws its images in an order of its own, {counts} labelled ones per '
                'iteration'
            )
        if facts['own_schedule']:
            notes.append('has a learning-rate schedule or optimizer of its own')
        kept = {(run.line['start_weights'] or {}).get('kept', 0) for run in ended}
        if kept - {0}:
            notes.append(f'{max(kept)} tensors start from its pre-training')
        for run in ended:
            notes += [
                f'seed {run.line["seed"]} was fed by an earlier training of {stage}, '
                'which ended with other weights than the present one'
                for stage in self.results.fed_by_another(run)
            ]
        return notes


def _race(mine: dict, twins: dict, pretrain: int) -> dict[str, Any]:
    target = twins[max(twins)]
    reached = iterations_to_reach(mine, target)
    twin = iterations_to_reach(twins, target)
    told: dict[str, Any] = dict(target=target, iterations=reached, twin_iterations=twin)
    for key, extra in (('ratio', 0), ('ratio_with_pretrain', pretrain)):
        told[key] = (reached + extra) / twin if reached is not None and twin else None
    return told
