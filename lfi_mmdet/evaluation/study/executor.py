"""Runs the tasks of a study side by side and keeps its results."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lfi_mmdet.compat.checkpoints import load_checkpoint
from lfi_mmdet.engine.hooks.paired_start_hook import weights_digest

from .machine import commit, machine
from .outcome import (
    TASK_FILE,
    is_complete,
    progress,
    read_json,
    result_lines,
    why_failed,
)
from .process import Busy, Process, lock
from .results import Line, Results
from .tasks import Task

_POLL = 0.2
#: Seconds between two lines of progress where nobody watches, as in a log
_LOG = 60.0
#: By these a machine or a user asks a program to end; they say nothing about the run
_ASKED_TO_END = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class Stopped(Exception):
    """The study was asked to end before it was done."""


def slots(
    gpus: Sequence[int] | None, per_gpu: int, jobs: int, threads: int | None
) -> list[dict[str, str]]:
    """Environments of the trainings that may run side by side.

    Args:
        gpus: Numbers of the GPUs; None for the CPU.
        per_gpu: Trainings on each of them.
        jobs: Trainings on the CPU.
        threads: Of each training; None shares the cores out.
    """
    if gpus is None:
        devices = [''] * jobs
    else:
        devices = [str(gpu) for _ in range(per_gpu) for gpu in gpus]
    threads = threads or max((os.cpu_count() or 1) // len(devices), 1)
    number = str(threads)
    return [
        dict(CUDA_VISIBLE_DEVICES=d, OMP_NUM_THREADS=number, MKL_NUM_THREADS=number)
        for d in devices
    ]


class Executor:
    """Runs tasks until each has an end in the results.

    Args:
        tasks: Stages before the runs that need them.
        results: Where ends are looked up and written.
        common: What every line says: study and so on.
        folders: Of this machine, and what stands for them.
        keep_checkpoints: Whether to keep those of finished runs.
        keep_stages: Whether to keep those of stages once all runs here have used them.
        command: Makes the command that repeats a task.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        results: Results,
        common: Mapping[str, Any],
        folders: Mapping[str, str],
        keep_checkpoints: bool,
        keep_stages: bool,
        command: Callable[[Task], list[str]],
    ) -> None:
        self.tasks, self.results = list(tasks), results
        self.common, self.folders = dict(common), folders
        self.keep_checkpoints, self.keep_stages = keep_checkpoints, keep_stages
        self.command = command
        self._running: dict[int, Process] = {}

    def run(self, environments: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """Run what has no end yet.

        Args:
            environments: One per training that may run at a time.

        Returns:
            Status of every task.

        Raises:
            Stopped: If it was interrupted; what ran is stopped and can be resumed.
        """
        waiting = [task for task in self.tasks if not self._settled(task)]
        total = sum(task.iterations for task in waiting)
        bar = tqdm(
            total=total,
            unit='it',
            desc='study',
            dynamic_ncols=True,
            mininterval=_POLL if sys.stderr.isatty() else _LOG,
            miniters=0,
        )
        with bar, _interruptible() as interrupted:
            try:
                while waiting or self._running:
                    if interrupted():
                        raise Stopped
                    self._collect()
                    self._launch(waiting, environments)
                    self._show(bar, total, waiting)
                    time.sleep(_POLL)
            finally:
                for process in self._running.values():
                    process.stop()
        return {key: end['status'] for key, end in self.results.ends().items()}

    # -- what is to be done ------------------------------------------------------------
    def _settled(self, task: Task) -> bool:
        end = self.results.ends().get(task.id)
        if end is None:
            return False
        if end['kind'] == 'stage' and end['status'] == 'finished':
            # Needed again by a run that was added later? In this order: another harness
            # deletes the checkpoint only after the end of its last user was written.
            return task.checkpoint.is_file() or not any(
                task in t.needs and not self._settled(t) for t in self.tasks
            )
        return True

    def _launch(
        self, waiting: list[Task], environments: Sequence[Mapping[str, str]]
    ) -> None:
        busy = {process.task.id for process in self._running.values()}
        for number, environment in enumerate(environments):
            if number in self._running:
                continue
            for task in list(waiting):
                if any(need in waiting or need.id in busy for need in task.needs):
                    continue
                process = self._start(task, environment, waiting)
                if process is not None:
                    self._running[number] = process
                    busy.add(task.id)
                    break

    def _start(
        self, task: Task, environment: Mapping[str, str], waiting: list[Task]
    ) -> Process | None:
        """Start a task, unless it has its end, must wait or is another harness's."""
        try:
            held = lock(task)
        except Busy:
            return None
        process = None
        try:
            # Not before the lock is held: until then another harness may train it to
            # its end, and what is left of it then looks as if it had never begun.
            state = self._readiness(task)
            if state == 'ready':
                process = Process(task, environment, self._attempt(), held)
            if state != 'wait':
                waiting.remove(task)
        finally:
            if process is None:
                held.close()
        return process

    def _readiness(self, task: Task) -> str:
        if self._settled(task):
            return 'settled'  # by another harness on the same folder
        known = self.results.ends()
        for need in task.needs:
            end = known.get(need.id)
            if end is None:
                return 'wait'
            if end['status'] != 'finished':
                reason = f'stage {need.id} {end["status"]}: {end.get("reason")}'
                self._finish(task, 'failed', reason)
                return 'settled'
        if is_complete(task):
            # it ended just before the harness did
            self._finish(task, 'finished', None)
            return 'settled'
        return 'ready'

    # -- what was done -----------------------------------------------------------------
    def _collect(self) -> None:
        for number, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            self._record(process.task, code)
            # not before its end is written, or another harness would start it again
            process.release()
            del self._running[number]

    def _record(self, task: Task, code: int) -> None:
        if code == 0 and is_complete(task):
            self._finish(task, 'finished', None)
        elif code in _ASKED_TO_END:
            raise Stopped
        elif code == 0:
            reason = 'ended early, without an error; see its log'
            self._finish(task, 'failed', reason)
        else:
            self._finish(task, *why_failed(task, code, self.folders))

    def _finish(self, task: Task, status: str, reason: str | None) -> None:
        attempts = read_json(task.folder / TASK_FILE).get('attempts') or [{}]
        last = attempts[-1]
        common = dict(
            self.common,
            commit=last.get('commit'),
            dirty=_any_dirty(attempts),
            commits=list(dict.fromkeys(a.get('commit') for a in attempts)),
            attempts=len(attempts),
            starts=[{k: a.get(k) for k in ('commit', 'dirty')} for a in attempts],
            command=self.command(task),
            machine=machine(),
            ended=_now(),
        )
        if task.val_interval is None and status == 'finished':
            common['weights_sha256'] = checkpoint_digest(task.checkpoint)
        common['fed_weights'] = self._fed_weights(task)
        lines: list[Line] = result_lines(task, status, reason, common)
        self.results.replace(
            [*self._trained_before(task), *lines],
            lambda old: old.get('id') == task.id and not old.get('superseded'),
        )
        if status == 'finished' and task.val_interval is None:
            remove_checkpoints(task, keep=task.checkpoint)
        elif status != 'finished' or not self.keep_checkpoints:
            remove_checkpoints(task)
        if not self.keep_stages:
            self._remove_stages()

    def _fed_weights(self, task: Task) -> dict[str, str]:
        """Digests of the weights it started from, by the id of the stage."""
        known = self.results.ends()
        told = {need.id: known.get(need.id, {}) for need in task.needs}
        return {
            key: end['weights_sha256']
            for key, end in told.items()
            if end.get('weights_sha256')  # older lines do not have it
        }

    def _trained_before(self, task: Task) -> list[Line]:
        """Lines of a stage that had ended and was needed again, marked as replaced."""
        if task.val_interval is not None:
            return []
        return [
            dict(line, superseded=True)
            for line in self.results.read()
            if line.get('id') == task.id and not line.get('superseded')
        ]

    def _remove_stages(self) -> None:
        known = self.results.ends()
        stages = {need.id: need for task in self.tasks for need in task.needs}
        for stage in stages.values():
            users = [task for task in self.tasks if stage in task.needs]
            if all(user.id in known for user in users):
                remove_checkpoints(stage)

    def _attempt(self) -> dict[str, Any]:
        return dict(commit(), started=_now())

    def _show(self, bar: tqdm, total: int, waiting: Sequence[Task]) -> None:
        todo = sum(task.iterations for task in waiting)
        running = [process.task for process in self._running.values()]
        todo += sum(task.iterations - progress(task) for task in running)
        names = ', '.join(task.id for task in running)
        bar.set_postfix_str(f'{len(waiting)} waiting; {names}', refresh=False)
        bar.update(max(total - todo, 0) - bar.n)


def checkpoint_digest(path: Path) -> str:
    """SHA-256 of the weights in a checkpoint, not of what else it holds."""
    content = load_checkpoint(str(path))
    return weights_digest(content.get('state_dict', content))


def remove_checkpoints(task: Task, keep: Path | None = None) -> None:
    """Delete the checkpoints of a training; the logs stay."""
    for path in task.folder.glob('iter_*.pth'):
        if path != keep:
            path.unlink(missing_ok=True)


def forget(task: Task) -> None:
    """Delete all that a training left."""
    shutil.rmtree(task.folder, ignore_errors=True)


def _any_dirty(attempts: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether code that no commit has took part; None if it cannot be told."""
    told = [attempt.get('dirty') for attempt in attempts]
    if any(told):
        return True
    return None if None in told else False


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the study; tells whether one of them came.

    They are noted, not raised: wherever they arrive, no training that was just started
    and no end that is being written gets lost, and a second one does not keep the
    remaining trainings from being stopped. What is ignored stays so, as by ``nohup``.
    """
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        asked.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler in (signal.SIG_IGN, None):  # None could not be restored
                continue
            try:
                signal.signal(number, note)
            except ValueError:  # not in the main thread
                break
            before[number] = handler
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
