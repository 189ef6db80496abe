"""Writes down what a run of a study did, for the harness to read."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from lfi_mmdet.engine.parent_death import children_die_with_parent

from .paired_start_hook import PAIRED_START

RECORD_FILE, PROGRESS_FILE = 'record.json', 'progress'
_ORDER, _LABELLED, _SEEN = 'study_order', 'study_labelled', 'study_seen'


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Keep ``record.json`` in the work dir: evaluations, order of the data, machine.

    The file is replaced as a whole after every evaluation, so whoever reads it after a
    crash finds the last complete state. The digest of the order of the images is a
    chain, is kept in the checkpoints, and so survives a resume.
    Priority: NORMAL, before the checkpoint is written.

    Args:
        labelled: Annotation file of the labelled images; only these count for the
            order and for the images per iteration. None counts all.
    """

    priority = 'NORMAL'

    def __init__(self, labelled: str | None = None) -> None:
        self.labelled = labelled
        self._ids: set[int] | None = None
        self._evaluations: dict[str, dict] = {}
        self._last_progress = 0.0

    def before_train(self, runner: Runner) -> None:
        """Read the ids; after a resume also what was recorded before."""
        children_die_with_parent()
        if self.labelled:
            content = json.loads(Path(self.labelled).read_text())
            self._ids = {image['id'] for image in content['images']}
        path = Path(runner.work_dir) / RECORD_FILE
        if not runner.iter:
            for key, value in ((_ORDER, ''), (_LABELLED, 0), (_SEEN, 0)):
                runner.message_hub.update_info(key, value)
        elif path.is_file():
            told = json.loads(path.read_text())['evaluations']
            # later ones are repeated
            self._evaluations = {k: v for k, v in told.items() if int(k) <= runner.iter}
        self._write(runner, finished=False)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Add the batch to the digest."""
        hub = runner.message_hub
        ids = list(_image_ids((data_batch or {}).get('data_samples')))
        named = [i for i in ids if self._ids is None or i in self._ids]
        chain = f'{_get(hub, _ORDER, "")}|{",".join(map(str, named))}'
        hub.update_info(_ORDER, hashlib.sha256(chain.encode()).hexdigest())
        hub.update_info(_LABELLED, _get(hub, _LABELLED, 0) + len(named))
        hub.update_info(_SEEN, _get(hub, _SEEN, 0) + len(ids))
        if time.monotonic() - self._last_progress > 1 and is_main_process():
            self._last_progress = time.monotonic()
            (Path(runner.work_dir) / PROGRESS_FILE).write_text(str(runner.iter + 1))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Add an evaluation."""
        self._evaluations[str(runner.iter)] = {
            key: float(value)
            for key, value in (metrics or {}).items()
            if math.isfinite(float(value))
        }
        self._write(runner, finished=False)

    def after_train(self, runner: Runner) -> None:
        """Say that the training reached its end."""
        self._write(runner, finished=True)

    def _write(self, runner: Runner, finished: bool) -> None:
        # not at the top: the package evaluation imports this one
        from lfi_mmdet.evaluation.report import run_info, write_json

        if not is_main_process():
            return
        hub = runner.message_hub
        info = run_info()
        info.pop('command')  # the paths of this machine
        record = dict(
            finished=finished,
            iteration=runner.iter,
            evaluations=self._evaluations,
            order=dict(
                sha256=_get(hub, _ORDER, ''),
                labelled_images=_get(hub, _LABELLED, 0),
                images=_get(hub, _SEEN, 0),
            ),
            start=_get(hub, PAIRED_START, None),
            seed=runner.seed,
            **info,
        )
        write_json(record, Path(runner.work_dir) / RECORD_FILE)


def _get(hub: Any, key: str, default: Any) -> Any:
    return hub.runtime_info.get(key, default)


def _image_ids(samples: Any) -> Iterator[int]:
    """Ids of the images of a batch; one of several branches is a dict of lists."""
    if isinstance(samples, dict):
        for name in sorted(samples):
            yield from _image_ids(samples[name])
    elif isinstance(samples, list | tuple):
        for sample in samples:
            yield from _image_ids(sample)
    elif samples is not None and 'img_id' in samples.metainfo:
        yield samples.metainfo['img_id']
