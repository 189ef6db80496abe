"""The weight of the distillation over the training."""

from __future__ import annotations

from mmengine.logging import MessageHub


class LossSchedule:
    """Linear warm-up, then constant, then nothing; every iteration or fewer.

    Integers are iterations; floats from 0.0 to 1.0 are shares of the training, so
    ``stop=1`` ends after one iteration and ``stop=1.0`` with the training.

    Args:
        warmup: Length of the linear warm-up; 0 for none.
        stop: When the distillation ends for good; None for never. From then on the
            teacher is not run.
        interval: The teacher is run, and its losses count, in every so many iterations
            only, the first one included. The losses are not scaled up for it; in the
            others they are 0, and so the log shows a fraction of them.
    """

    def __init__(
        self, warmup: float = 0, stop: float | None = None, interval: int = 1
    ) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(
                f'distiller.schedule.interval={interval!r} is not a number of '
                'iterations of at least 1'
            )
        for name, value in (('warmup', warmup), ('stop', stop)):
            if value is not None and (value < 0 or (value > 1 and value != int(value))):
                raise ValueError(
                    f'distiller.schedule.{name}={value} is neither a number of '
                    'iterations nor a share of the training'
                )
        same_unit = stop is not None and self._is_share(stop) == self._is_share(warmup)
        if stop is not None and same_unit and stop < warmup:
            raise ValueError(
                f'distiller.schedule.stop={stop} comes before the end of the '
                f'warmup={warmup}'
            )
        self.warmup, self.stop, self.interval = warmup, stop, interval

    @staticmethod
    def _is_share(value: float) -> bool:
        return isinstance(value, float) and value <= 1

    def factor(self, iteration: int, max_iters: int) -> float:
        """Factor on all losses, between 0 and 1.

        Args:
            iteration: Iterations done so far.
            max_iters: Iterations of the whole training.

        Raises:
            ValueError: If the distillation would stop before the warm-up ends.
        """

        def iterations(value: float) -> float:
            return value * max_iters if self._is_share(value) else value

        warmup = iterations(self.warmup)
        if self.stop is not None:
            stop = iterations(self.stop)
            if stop < warmup:
                raise ValueError(
                    f'distiller.schedule.stop={self.stop} is iteration {stop:.0f} of '
                    f'{max_iters}, before the end of the warmup={self.warmup} at '
                    f'{warmup:.0f}'
                )
            if iteration >= stop:
                return 0.0
        if iteration % self.interval:
            return 0.0
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
