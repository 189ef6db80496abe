"""Runs a study file, or the part of it that was asked for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfi_mmdet.engine.preflight import InputError

from .executor import Executor, forget, slots
from .outcome import TASK_FILE, read_json
from .plan import Arm, Setting, Study
from .process import Busy, lock, training_command
from .results import Line, Results
from .tasks import ROOT, Task, TaskMaker, select

RESULTS_FILE = 'results.jsonl'
REDO = ('failed', 'changed')


@dataclass(frozen=True)
class Selection:
    """A part of a study; None selects all.

    Args:
        settings: Names of settings, with or without their amount of labels.
        arms: Names of arms.
        seeds: Seeds.
    """

    settings: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    @property
    def partial(self) -> bool:
        """Whether anything is left out."""
        return any(part is not None for part in (self.settings, self.arms, self.seeds))

    def check(self, study: Study) -> None:
        """Check the names.

        Raises:
            InputError: If the study has no such setting, arm or seed.
        """
        runs = study.runs()
        known: dict[str, list] = {
            '--settings': sorted({n for s, _, _ in runs for n in (s.name, s.source)}),
            '--arms': [*study.arms],
            '--seeds': sorted({seed for _, _, seed in runs}),
        }
        asked: tuple[tuple | None, ...] = (self.settings, self.arms, self.seeds)
        for flag, names in zip(known, asked, strict=True):
            for name in names or ():
                if name not in known[flag]:
                    raise InputError(f'{flag}: {name!r} is none of {known[flag]}')

    def __call__(self, setting: Setting, arm: Arm, seed: int) -> bool:
        """Whether a run belongs to it."""
        return (
            (
                self.settings is None
                or setting.name in self.settings
                or setting.source in self.settings
            )
            and (self.arms is None or arm.name in self.arms)
            and (self.seeds is None or seed in self.seeds)
        )


@dataclass
class StudyRun:
    """A study, its work dir and what of it was asked for."""

    study: Study
    work: Path
    selection: Selection

    def __post_init__(self) -> None:
        self.work = self.work.resolve()
        self.results = Results(self.work / RESULTS_FILE)

    def make_tasks(self, workers: int = 1) -> list[Task]:
        """Make data, start weights and configs of all selected trainings."""
        self.selection.check(self.study)
        self.work.mkdir(parents=True, exist_ok=True)
        self.maker = TaskMaker(self.study, self.work, workers)
        return select(self.study, self.maker, self.selection)

    def state(self, task: Task) -> str:
        """What became of a task: finished, diverged, failed, changed, begun, open."""
        end = self.results.ends().get(task.id)
        if end is not None:
            same = end['config_hash'] == task.digest
            return str(end['status']) if same else 'changed'
        return 'begun' if read_json(task.folder / TASK_FILE) else 'open'

    def run(
        self, tasks: Sequence[Task], redo: Sequence[str], environments: Sequence[dict]
    ) -> dict[str, str]:
        """Run what has no end yet.

        Args:
            tasks: From :meth:`make_tasks`.
            redo: Of :data:`REDO`: which ends to void and run again. Their lines stay in
                the results, marked ``superseded``.
            environments: See :func:`slots`.

        Returns:
            Status by id.

        Raises:
            InputError: If a run that ended had another config than it has now.
            Stopped: If it was interrupted.
        """
        self._void(tasks, redo)
        changed = [task.id for task in tasks if self.state(task) == 'changed']
        if changed:
            raise InputError(
                f'{len(changed)} trainings that ended had another config than the '
                f'study gives them now: {", ".join(changed[:5])}'
                f'{", ..." if len(changed) > 5 else ""}; --redo changed runs them '
                'again, another --work-dir keeps both'
            )
        plan = json.loads(json.dumps(self._plan_line()))
        if plan not in self.results.read():
            self.results.replace([plan], lambda old: old.get('kind') == 'plan')
        executor = Executor(
            tasks,
            self.results,
            dict(study=self.study.name),
            self.maker.folders,
            keep_checkpoints=self.study.keep_checkpoints,
            # what was not selected may need them
            keep_stages=self.study.keep_checkpoints or self.selection.partial,
            command=self.command,
        )
        return executor.run(environments)

    def command(self, task: Task) -> list[str]:
        """The command that repeats a task, without folders of this machine."""
        words = ['tools/study.py', self.command_path()]
        for key in ('setting', 'arm', 'seed'):
            if key in task.facts:
                words += [f'--{key}s', str(task.facts[key])]
        return words

    def shown_command(self, task: Task) -> str:
        """The command of its training on this machine."""
        return shlex.join(['python', *training_command(task)])

    def _void(self, tasks: Sequence[Task], redo: Sequence[str]) -> None:
        again: dict[str, Task] = {}
        for task in tasks:
            end = self.results.ends().get(task.id)
            if end is None:
                continue
            kinds = {
                'failed': end['status'] in ('failed', 'diverged'),
                'changed': end['config_hash'] != task.digest,
            }
            if any(kinds[kind] for kind in redo):
                again[task.id] = task
        if not again:
            return
        with ExitStack() as held:
            for task in again.values():
                try:
                    held.enter_context(lock(task))
                except Busy:
                    raise InputError(
                        f'--redo: {task.id} is being trained by another study.py on '
                        f'{self.work.name}; wait for it or stop it'
                    ) from None
            lines = self.results.read()
            old: list[Line] = [
                dict(line, superseded=True) for line in lines if line.get('id') in again
            ]
            self.results.replace(old, lambda line: line.get('id') in again)
            for task in again.values():
                forget(task)

    def _plan_line(self) -> Line:
        study = self.study
        runs = [
            dict(
                id=f'{setting.name}/{arm.name}/seed{seed}',
                setting=setting.name,
                arm=arm.name,
                seed=seed,
            )
            for setting, arm, seed in study.runs()
        ]
        arms: dict[str, Any] = {
            name: dict(
                title=arm.title,
                twin=arm.twin,
                pretrain_iters=arm.pretrain_iters,
                own_order=arm.own_order,
                own_schedule=arm.own_schedule,
            )
            for name, arm in study.arms.items()
        }
        settings = {
            name: dict(
                title=setting.title,
                iterations=setting.iterations,
                val_interval=setting.val_interval,
                tests=['val', *setting.tests],
            )
            for name, setting in study.settings.items()
        }
        return dict(
            kind='plan',
            study=study.name,
            title=study.title,
            command=['tools/study.py', self.command_path()],
            settings=settings,
            arms=arms,
            runs=runs,
            selection_seeds=list(study.selection_seeds),
            groups={name: list(members) for name, members in study.groups.items()},
            compare=[asdict(item) for item in study.compare],
            bars=[asdict(bar) for bar in study.bars],
        )

    def command_path(self) -> str:
        """The study file, without folders of this machine."""
        path = self.study.path.resolve()
        inside = path.is_relative_to(ROOT)
        return str(path.relative_to(ROOT)) if inside else path.name


__all__ = ['REDO', 'RESULTS_FILE', 'Selection', 'StudyRun', 'slots']
