"""Makes a resumed training continue as if it had not been stopped."""

from __future__ import annotations

import numpy as np
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed every iteration by the run's seed, the rank and the iteration's number.

    Dropped paths and sampled boxes then do not depend on what was drawn before, so
    nothing has to be saved for a resumed run to repeat an uninterrupted one. Data
    loader workers are seeded by mmengine when they start; with
    ``persistent_workers=False`` they start anew, and alike, in every epoch, and an
    iteration-based loop replays the batches before the checkpoint.

    Priority: VERY_HIGH.
    """

    priority = 'VERY_HIGH'

    def _seed(self, runner: Runner) -> None:
        entropy = [runner.seed, runner.rank, runner.iter]
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        set_random_seed(int(seed))

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed before the first batch is loaded."""
        self._seed(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None
    ) -> None:
        """Seed before the forward pass."""
        self._seed(runner)
