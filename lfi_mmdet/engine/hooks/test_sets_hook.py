"""Evaluates a trained model on further data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm

TESTS_FILE = 'tests.json'


@HOOKS.register_module()
class TestSetsHook(Hook):
    """Evaluate on further sets after the last iteration, e.g. on other domains.

    One evaluation in the process that trained saves starting one per set. A training
    that is resumed after its last iteration evaluates as well. Writes ``tests.json``
    into the work dir. Priority: HIGH.

    Args:
        tests: Per name a dict with ``dataloader`` and ``evaluator``, as in a config.
    """

    priority = 'HIGH'
    __test__ = False  # no test case of pytest

    def __init__(self, tests: dict[str, dict]) -> None:
        self.tests = tests

    def after_train(self, runner: Runner) -> None:
        """Evaluate and write the metrics."""
        from lfi_mmdet.evaluation.report import write_json

        metrics = {name: self._evaluate(runner, name) for name in self.tests}
        if is_main_process():
            write_json(metrics, Path(runner.work_dir) / TESTS_FILE)

    def _evaluate(self, runner: Runner, name: str) -> dict[str, float]:
        parts: dict[str, Any] = self.tests[name]
        loader = runner.build_dataloader(parts['dataloader'], seed=runner.seed)
        evaluator = runner.build_evaluator(parts['evaluator'])
        if hasattr(loader.dataset, 'metainfo'):
            evaluator.dataset_meta = loader.dataset.metainfo
        runner.model.eval()
        with torch.no_grad():
            for batch in tqdm(loader, desc=f'test set {name}', disable=None):
                outputs = runner.model.val_step(batch)
                evaluator.process(data_samples=outputs, data_batch=batch)
        metrics = evaluator.evaluate(len(loader.dataset))
        return {key: float(value) for key, value in metrics.items()}
