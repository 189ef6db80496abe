"""Time several models fairly, in turns and in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.testing import demo_mm_inputs
from torch import nn

from .reading import evaluation_mode


@dataclass
class Timing:
    """Wall-clock times of one model.

    Attributes:
        times: Seconds per run, in the order of the runs.
        peak_memory: Most bytes allocated on the CUDA device during one run, weights
            included and the other models' weights left out; None on the CPU.
    """

    times: list[float]
    peak_memory: int | None

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Interquartile range in seconds."""
        if len(self.times) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times, n=4, method='inclusive')
        return high - low


class DemoBatch:
    """One random image with random ground truth, and what a detector does with it.

    Args:
        model: The detector.
        shape: (height, width) of the image in pixels, before padding.
        num_boxes: Objects in the image.
    """

    def __init__(
        self, model: BaseDetector, shape: tuple[int, int], num_boxes: int = 10
    ) -> None:
        self.model = model
        # its labels start at 1, as though 0 were the background
        self.data = demo_mm_inputs(
            batch_size=1,
            image_shapes=(3, *shape),
            num_items=[num_boxes],
            num_classes=num_classes(model) + 1,
            with_mask=True,
        )
        for sample in self.data['data_samples']:
            sample.gt_instances.labels -= 1
            sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
        self.inputs = model.data_preprocessor(self.data, training=False)

    def forward(self) -> None:
        """Run all of the network, without the post-processing of its detections."""
        with evaluation_mode(self.model):
            self.model(**self.inputs, mode='tensor')

    def train_step(self) -> None:
        """Losses and gradients of one step, without the optimizer's update."""
        self.model.train()
        batch = self.model.data_preprocessor(self.data, training=True)
        loss, _ = self.model.parse_losses(self.model(**batch, mode='loss'))
        loss.backward()
        self.model.zero_grad(set_to_none=True)


def num_classes(model: nn.Module) -> int:
    """Number of classes of a one- or two-stage detector.

    Raises:
        TypeError: If its heads do not tell.
    """
    heads = getattr(model, 'roi_head', model)
    head = getattr(heads, 'bbox_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    if not hasattr(head, 'num_classes'):
        raise TypeError(
            f'cannot tell the number of classes of a {type(model).__name__}'
        )
    return head.num_classes


def time_in_turns(
    runs: Sequence[tuple[nn.Module, Callable[[], None]]],
    repeat: int,
    warmup: int = 2,
) -> list[Timing]:
    """Time A, B, A, B, ... so that whatever drifts drifts for all alike.

    Args:
        runs: Per model, the model and what to time.
        repeat: Timed runs of each.
        warmup: Runs of each beforehand, not timed.
    """
    if repeat < 1:
        raise ValueError(f'repeat={repeat} is less than 1')
    times: list[list[float]] = [[] for _ in runs]
    peaks: list[int | None] = [None for _ in runs]
    for turn in range(-warmup, repeat):
        for i, (model, run) in enumerate(runs):
            device = next(model.parameters()).device
            before = _start_memory(device)
            start = time.perf_counter()
            run()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            elapsed = time.perf_counter() - start
            if turn < 0:
                continue
            times[i].append(elapsed)
            if before is not None:
                used = torch.cuda.max_memory_allocated(device) - before
                peaks[i] = max(peaks[i] or 0, used + _size(model))
    return [Timing(t, p) for t, p in zip(times, peaks)]


def _start_memory(device: torch.device) -> int | None:
    if device.type != 'cuda':
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _size(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
