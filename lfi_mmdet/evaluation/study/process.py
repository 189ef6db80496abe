"""Starts and stops the training of a task."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lfi_mmdet.engine.hooks.invalid_loss_hook import DIVERGED_FILE
from lfi_mmdet.engine.parent_death import die_with_parent

from .outcome import (
    ATTEMPT_MARK,
    LOG_FILE,
    TASK_FILE,
    checkpoint_to_resume,
    read_json,
)
from .run_config import write_config
from .tasks import ROOT, Task

_LOCKS = '.locks'
_MARK = 'LFI_STUDY_TASK'


class Busy(Exception):
    """Another process runs this task."""


class Process:
    """The process that trains one task, alone in its folder.

    The harness holds a lock of the operating system, which goes with it; a file of a
    lock that nobody holds is no obstacle. It is kept until :meth:`release`. On Linux
    the training dies with the harness; should anything be left of an earlier start, it
    is found by a variable of its environment and ended.

    Args:
        task: To train.
        environment: For ``CUDA_VISIBLE_DEVICES`` and the numbers of threads.
        attempt: What to note about this start, e.g. the commit.
        held: The :func:`lock` of the task, which is this object's from now on.
    """

    def __init__(
        self,
        task: Task,
        environment: Mapping[str, str],
        attempt: Mapping[str, Any],
        held: IO[str],
    ) -> None:
        self.task = task
        self._lock = held
        resume = self._prepare(attempt)
        self.resumed = resume is not None
        self._process = self._start(environment, resume)

    def _prepare(self, attempt: Mapping[str, Any]) -> Path | None:
        end_leftovers(self.task)
        folder = self.task.folder
        state = read_json(folder / TASK_FILE)
        resume = None
        if state.get('config_hash') == self.task.digest:
            resume = checkpoint_to_resume(self.task)
        if resume is None:
            # nothing of an earlier start may be taken for this one's
            shutil.rmtree(folder, ignore_errors=True)
            state = {}
        # nor may a later crash be taken for a divergence that came before it
        (folder / DIVERGED_FILE).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(self.task.config, folder / 'study_config.py')
        state = dict(
            id=self.task.id,
            config_hash=self.task.digest,
            attempts=[
                *state.get('attempts', []),
                dict(attempt, resumed=None if resume is None else resume.name),
            ],
        )
        aside = folder / f'.{TASK_FILE}.{os.getpid()}'
        aside.write_text(json.dumps(state, indent=2))
        os.replace(aside, folder / TASK_FILE)
        return resume

    def _start(
        self, environment: Mapping[str, str], resume: Path | None
    ) -> subprocess.Popen:
        command = training_command(self.task)
        if resume is not None:
            command += ['--resume', str(resume)]
        with (self.task.folder / LOG_FILE).open('a') as log:
            log.write(f'{ATTEMPT_MARK}\n')
            log.flush()
            return subprocess.Popen(
                [sys.executable, '-W', 'ignore', *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, _MARK: str(self.task.folder)},
                # Ctrl-C is for the harness, which then stops its trainings
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._signal(signal.SIGKILL)  # workers of one that was killed
        return code

    def release(self) -> None:
        """Let others have the task; for when its end is written."""
        self._lock.close()

    def stop(self, patience: float = 10.0) -> None:
        """End it with everything that it started."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)  # what it started may still run
        self._process.wait()
        self.release()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass


def training_command(task: Task) -> list[str]:
    """``tools/train.py`` and its arguments."""
    config, folder = task.folder / 'study_config.py', task.folder
    return [str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(folder)]


def lock(task: Task) -> IO[str]:
    """Lock a task.

    Raises:
        Busy: If another harness holds it.
    """
    # beside the folder, which may be deleted
    path = task.folder.parent / _LOCKS / task.folder.name
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open('w')
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise Busy(task.id) from None
    return stream


def end_leftovers(task: Task, patience: float = 10.0) -> None:
    """Kill what an earlier start of a task left running, if this is Linux."""
    mark = f'{_MARK}={task.folder}'.encode()
    left = _marked(mark)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    deadline = time.monotonic() + patience
    while left and _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)


def _marked(mark: bytes) -> list[int]:
    """Processes with an entry in their environment."""
    found = []
    for path in Path('/proc').glob('[0-9]*/environ'):
        try:
            if mark in path.read_bytes().split(b'\0'):
                found.append(int(path.parent.name))
        except OSError:
            continue  # of another user, or gone
    return found
