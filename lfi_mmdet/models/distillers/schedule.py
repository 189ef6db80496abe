"""The weight of the distillation over the training."""

from __future__ import annotations

from mmengine.logging import MessageHub


class LossSchedule:
    """Linear warm-up, then constant, then nothing.

    Whole numbers are iterations, fractions below 1 are shares of the training.

    Args:
        warmup: Length of the linear warm-up; 0 for none.
        stop: When the distillation ends for good; None for never. From then on the
            teacher is not run.
    """

    def __init__(self, warmup: float = 0, stop: float | None = None) -> None:
        for name, value in (('warmup', warmup), ('stop', stop)):
            if value is not None and (value < 0 or (value > 1 and value != int(value))):
                raise ValueError(
                    f'distiller.schedule.{name}={value} is neither a number of '
                    'iterations nor a share of the training'
                )
        if stop is not None and (stop < 1) == (warmup < 1) and stop < warmup:
            raise ValueError(
                f'distiller.schedule.stop={stop} comes before the end of the '
                f'warmup={warmup}'
            )
        self.warmup, self.stop = warmup, stop

    def factor(self, iteration: int, max_iters: int) -> float:
        """Factor on all losses, between 0 and 1.

        Args:
            iteration: Iterations done so far.
            max_iters: Iterations of the whole training.
        """

        def iterations(value: float) -> float:
            return (
                value * max_iters if isinstance(value, float) and value < 1 else value
            )

        if self.stop is not None and iteration >= iterations(self.stop):
            return 0.0
        warmup = iterations(self.warmup)
        return min(1.0, (iteration + 1) / warmup) if warmup else 1.0

    def current(self) -> float:
        """Factor at the running :class:`mmengine.runner.Runner`'s iteration.

        mmengine keeps the iteration in its message hub, also after a resume. Outside a
        training there is no iteration, and the factor is 1.
        """
        hub = MessageHub.get_current_instance()
        if 'iter' not in hub.runtime_info or 'max_iters' not in hub.runtime_info:
            return 1.0
        return self.factor(hub.get_info('iter'), hub.get_info('max_iters'))
