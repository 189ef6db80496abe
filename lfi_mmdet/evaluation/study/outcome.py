"""Reads what a training left in its work dir."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfi_mmdet.engine.hooks.invalid_loss_hook import DIVERGED_FILE
from lfi_mmdet.engine.hooks.run_record_hook import PROGRESS_FILE, RECORD_FILE
from lfi_mmdet.engine.hooks.test_sets_hook import TESTS_FILE

from .hashes import neutral
from .results import Line
from .tasks import Task

LOG_FILE, TASK_FILE = 'log.txt', 'task.json'
#: A line of the log before the output of every attempt
ATTEMPT_MARK = '======== attempt ========'
_PREFIX = 'coco/'
#: Metrics that are 0 without detections, whatever the sizes of the objects
_ALWAYS = ('mAP', 'mAP_50', 'mAP_75')


def read_json(path: Path) -> dict[str, Any]:
    """Content of a file; an empty one if there is none, or a broken one."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_complete(task: Task) -> bool:
    """Whether the training reached its end, under this config, and left all it has to.

    That is every evaluation, and of a stage its checkpoint.
    """
    record = read_json(task.folder / RECORD_FILE)
    if read_json(task.folder / TASK_FILE).get('config_hash') != task.digest:
        return False
    if not record.get('finished') or record.get('iteration') != task.iterations:
        return False
    if task.val_interval is None:
        return task.checkpoint.is_file()
    return all(str(point) in record['evaluations'] for point in task.points)


def checkpoint_to_resume(task: Task) -> Path | None:
    """The latest checkpoint from which nothing is lost.

    The newest file counts only if mmengine has named it in ``last_checkpoint``, which
    it does once the file is complete. If the training is evaluated, the evaluation of
    that iteration must be there as well: a resumed training would not repeat it.
    """
    done = read_json(task.folder / RECORD_FILE).get('evaluations') or {}
    files = {}
    for path in task.folder.glob('iter_*.pth'):
        match = re.fullmatch(r'iter_(\d+)\.pth', path.name)
        if match:
            files[int(match.group(1))] = path
    named = task.folder / 'last_checkpoint'
    last = Path(named.read_text().strip()).name if named.is_file() else ''
    for step in sorted(files, reverse=True):
        whole = files[step].name == last or step < max(files)
        if whole and (not task.points or str(step) in done):
            return files[step]
    return None


def progress(task: Task) -> int:
    """Iterations done so far."""
    try:
        return min(int((task.folder / PROGRESS_FILE).read_text()), task.iterations)
    except (OSError, ValueError):
        return 0


def why_failed(task: Task, code: int, folders: Mapping[str, str]) -> tuple[str, str]:
    """Status and reason of a training that ended with an error.

    Args:
        task: The training.
        code: Its exit code; negative for a signal.
        folders: Of this machine, and what stands for them.

    Returns:
        ``diverged`` or ``failed``, and why.
    """
    diverged = read_json(task.folder / DIVERGED_FILE)
    if diverged:
        return 'diverged', str(diverged.get('reason'))
    if code < 0:
        hint = ', perhaps out of memory' if code == -9 else ''
        return 'failed', f'ended by signal {-code}{hint}'
    log = task.folder / LOG_FILE
    text = log.read_text(errors='replace') if log.is_file() else ''
    # what an attempt before met may be mended
    text = text.rpartition(f'{ATTEMPT_MARK}\n')[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('error: ')]
    told = (errors or lines or ['no output'])[-1]
    return 'failed', neutral(f'exit code {code}: {told[:300]}', folders)


def result_lines(
    task: Task, status: str, reason: str | None, common: Mapping[str, Any]
) -> list[Line]:
    """Lines of a training that came to its end: one per evaluation.

    The last one has ``final: true``. Without any evaluation, as of a stage or of a
    training that failed before, there is one line without metrics.
    """
    record = read_json(task.folder / RECORD_FILE)
    tests = read_json(task.folder / TESTS_FILE)
    order = record.get('order') or {}
    done = record.get('evaluations') or {}
    iteration = record.get('iteration', 0)
    if status != 'finished':
        iteration = max(iteration, progress(task))
    base: Line = dict(
        common,
        kind='stage' if task.val_interval is None else 'run',
        id=task.id,
        **task.facts,
        config_hash=task.digest,
        start_weights_hash=(record.get('start') or {}).get('sha256'),
        start_weights=record.get('start'),
        order_hash=order.get('sha256'),
        images_seen=order.get('images'),
        labelled_images_seen=order.get('labelled_images'),
        machine=dict(common.get('machine') or {}, gpu=record.get('gpu')),
        cpu_threads=record.get('cpu_threads'),
        versions=record.get('versions'),
        status=status,
        reason=reason,
        points=task.points,
    )
    evaluator = task.config.get('val_evaluator')
    lines = [
        dict(
            base, iteration=step, metrics=dict(val=_scores(done[str(step)], evaluator))
        )
        for step in task.points
        if str(step) in done
    ]
    if status != 'finished' or not lines:
        lines.append(dict(base, iteration=iteration, metrics={}))
    lines[-1]['final'] = True
    if lines[-1]['metrics']:
        # test sets are evaluated like the validation set
        lines[-1]['metrics'].update(
            {name: _scores(found, evaluator) for name, found in tests.items()}
        )
    return lines


def _scores(metrics: Mapping[str, float], evaluator: Any) -> dict[str, float]:
    """Metrics without mmdet's prefix, as far as they have a value.

    Left out is what is not finite, and -1, COCO's sign for "no such objects". Where
    nothing at all was detected, mmdet's ``CocoMetric`` gives no metrics: those that it
    would have computed are 0.

    Args:
        metrics: As the evaluator gave them.
        evaluator: Its config, or a list of several.
    """
    found = {
        key.removeprefix(_PREFIX): value
        for key, value in metrics.items()
        if math.isfinite(value) and value != -1
    }
    if any(key.startswith(_PREFIX) for key in metrics):
        return found
    return {**dict.fromkeys(_computed(evaluator), 0.0), **found}


def _computed(evaluator: Any) -> list[str]:
    names = []
    for part in evaluator if isinstance(evaluator, list | tuple) else [evaluator or {}]:
        if not str(part.get('type')).endswith('CocoMetric') or part.get('format_only'):
            continue
        kinds = part.get('metric', 'bbox')
        items = part.get('metric_items') or _ALWAYS
        names += [
            f'{kind}_{item}'
            for kind in ([kinds] if isinstance(kinds, str) else kinds)
            if kind in ('bbox', 'segm')
            for item in items
            if item in _ALWAYS
        ]
    return names
