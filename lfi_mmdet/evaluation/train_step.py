"""A step of training as mmengine does it, of which every run does the same work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from lfi_mmdet.engine.amp import choose_precision
from lfi_mmdet.models.distillers import Distiller, LossSchedule


class TrainStep:
    """Data preprocessor, losses, gradients, the optimizer's update, gradients freed.

    The optimizer is the config's, but with a learning rate of 0: it does all its work
    and changes nothing, so that proposals and samples are the same in every run and
    for every model with the same weights.

    Args:
        model: The detector; changed to training mode by each call.
        cfg: Config with ``optim_wrapper``.
        data: Batch as a data loader hands it on.
        amp: Mixed precision, as ``tools/train.py --amp``.
        steps: Iterations in one call; with ``distiller.schedule.interval=n`` a
            multiple of n does justice to the teacher.
    """

    def __init__(
        self,
        model: BaseDetector,
        cfg: Config,
        data: dict[str, Any],
        amp: bool = False,
        steps: int = 1,
    ) -> None:
        self.model, self.data, self.steps = model, data, steps
        choose_precision(cfg, amp)
        self.optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        for group in self.optimizer.param_groups:
            group['lr'] = 0.0
        for schedule in schedules(model):
            # after the warm-up and before the end
            schedule.warmup, schedule.stop = 0, None

    def __call__(self) -> None:
        """Train for ``steps`` iterations."""
        self.model.train()
        with _training_clock() as clock:
            for iteration in range(self.steps):
                clock['iter'] = iteration
                self.model.train_step(self.data, self.optimizer)

    def prepare(self) -> None:
        """Run once if the optimizer has no state yet; it makes it in its first step."""
        if not self.optimizer.optimizer.state:
            self()

    def settle(self, most: int = 40) -> int:
        """Train until dynamic loss scaling has found a scale at which none is skipped.

        Returns:
            Number of calls; 0 without loss scaling.
        """
        scaler = getattr(self.optimizer, 'loss_scaler', None)
        if scaler is None:
            return 0
        for calls in range(1, most + 1):
            before = scaler.get_scale()
            self()
            if scaler.get_scale() >= before:
                return calls
        raise RuntimeError(
            f'losses overflow under AMP at a scale of {scaler.get_scale()}, still '
            f'after {most} steps'
        )

    def tensors(self) -> Iterator[Tensor]:
        """Everything that stays between steps, the teacher's weights included."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.optimizer.state.values():
            yield from (v for v in state.values() if isinstance(v, Tensor))
        teacher = getattr(self.model, 'teacher', None)
        if teacher is not None:
            found: list[Tensor] = []

            def note(tensor: Tensor) -> Tensor:
                found.append(tensor)
                return tensor

            teacher.apply_(note)
            yield from found


def interval(model: BaseDetector) -> int:
    """Every how many iterations a detector asks its teacher; 1 without a teacher."""
    return math.lcm(*(schedule.interval for schedule in schedules(model)))


def schedules(model: BaseDetector) -> list[LossSchedule]:
    """Those of all distillers of a detector; none without a teacher."""
    distiller: Distiller | None = getattr(model, 'distiller', None)
    return [] if distiller is None else [part.schedule for part in distiller.parts]


def common_steps(models: Sequence[BaseDetector]) -> int:
    """Least number of iterations in which every detector comes round."""
    return math.lcm(*(interval(model) for model in models))


@contextmanager
def _training_clock() -> Iterator[dict[str, Any]]:
    """Where mmengine keeps the iteration, with what was there put back afterwards."""
    info = MessageHub.get_current_instance().runtime_info
    before = {key: info[key] for key in ('iter', 'max_iters') if key in info}
    info['max_iters'] = 10**6
    try:
        yield info
    finally:
        for key in ('iter', 'max_iters'):
            info.pop(key, None)
        info.update(before)
