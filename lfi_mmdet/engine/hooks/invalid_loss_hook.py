"""Ends a training whose loss is no number any more."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

DIVERGED_FILE = 'diverged.json'


class LossDiverged(RuntimeError):
    """The loss became infinite or NaN."""


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stop when the loss is infinite or NaN, and say so in the work dir.

    mmdet's ``CheckInvalidLossHook`` stops as well, but leaves no trace that tells a
    diverged run from one that crashed. mmengine's log reads the loss in every
    iteration anyway, so checking it costs no further synchronisation.

    Priority: VERY_HIGH, before the checkpoint and the evaluation.

    Args:
        interval: Iterations between two checks.
    """

    priority = 'VERY_HIGH'

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object = None,
        outputs: dict | None = None,
    ) -> None:
        """Check the loss.

        Raises:
            LossDiverged: If it is not finite.
        """
        if not outputs or not self.every_n_train_iters(runner, self.interval):
            return
        values = {
            name: float(torch.as_tensor(value).detach())
            for name, value in outputs.items()
        }
        if math.isfinite(values['loss']):
            return
        iteration = runner.iter + 1
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        reason = f'{", ".join(bad)} not finite at iteration {iteration}'
        if is_main_process():
            path = Path(runner.work_dir) / DIVERGED_FILE
            path.write_text(json.dumps(dict(iteration=iteration, reason=reason)))
        raise LossDiverged(reason)
