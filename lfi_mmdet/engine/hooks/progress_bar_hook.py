"""Progress bars for people who watch a short training."""

from __future__ import annotations

import sys

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Show training and evaluation as bars on standard error.

    The log stays as it is; the main process draws. Priority: VERY_LOW.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._train_bar: tqdm | None = None
        self._val_bar: tqdm | None = None

    def _bar(self, runner: Runner, text: str, total: int, initial: int = 0) -> tqdm:
        return tqdm(
            total=total,
            initial=initial,
            desc=text,
            file=sys.stderr,
            disable=runner.rank != 0,
            dynamic_ncols=True,
        )

    def before_train(self, runner: Runner) -> None:
        """Open the bar, at the right place after a resume."""
        self._train_bar = self._bar(runner, 'training', runner.max_iters, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object, outputs: dict | None
    ) -> None:
        """Advance, and show the loss now and then (reading it waits for the GPU)."""
        if self._train_bar is None:
            return
        if outputs and self.every_n_train_iters(runner, 20):
            loss = f'{float(outputs["loss"]):.3f}'
            self._train_bar.set_postfix(loss=loss, refresh=False)
        self._train_bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        if self._train_bar is not None:
            self._train_bar.close()

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the bar of one evaluation."""
        total = len(runner.val_dataloader)
        self._val_bar = self._bar(runner, 'evaluation', total)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: object, outputs: object
    ) -> None:
        """Advance."""
        if self._val_bar is not None:
            self._val_bar.update()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Close the bar."""
        if self._val_bar is not None:
            self._val_bar.close()
