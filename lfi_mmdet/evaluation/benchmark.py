"""Measures what LFI costs: a twin against its variants, in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.runner import set_random_seed

from lfi_mmdet.engine.student_config import student_config

from .checkpoint_size import checkpoint_bytes
from .complexity import count_flops, count_parameters
from .demo_batch import full_proposals, head_work
from .loader_timing import PipelineTimer, time_loaders
from .memory import peak_memory, resident_bytes
from .reading import evaluation_mode
from .subjects import Subject, inference_tensors
from .timing import Spread, garbage_apart, time_in_turns

Results = list[dict[str, Any]]


class Benchmark:
    """Runs the measurements that each subject's variant asks for.

    Args:
        subjects: The twin, then its variants.
        repeat: Timed runs of each.
        warmup: Runs of each beforehand.
        images: Images that pipelines are timed on.
        transform: Transform whose share of a pipeline's time is told.
        progress: Whether to show progress bars.
    """

    #: Peaks differ little from run to run, and finding them is slow on a CPU
    MEMORY_RUNS = 3

    def __init__(
        self,
        subjects: Sequence[Subject],
        repeat: int = 10,
        warmup: int = 2,
        images: int = 100,
        transform: str = 'LoadCachedTargets',
        progress: bool = False,
    ) -> None:
        self.subjects, self.repeat, self.warmup = list(subjects), repeat, warmup
        self.images, self.transform, self.progress = images, transform, progress
        self.setting = self.subjects[0].setting
        self.results: Results = [{} for _ in self.subjects]

    def run(self) -> Results:
        """Measure everything; one dict per subject, by the name of the measure."""
        steps = (
            ('parameters', self._parameters),
            ('flops', self._flops),
            ('inference', self._inference),
            ('inference_memory', self._inference_memory),
            ('train_step', self._train_step),
            ('train_memory', self._train_memory),
            ('checkpoint', self._checkpoint),
            ('loader', self._loader),
        )
        for name, measure in steps:
            chosen = [
                i for i, s in enumerate(self.subjects) if name in s.variant.measures
            ]
            if not chosen:
                continue
            measured = measure([self.subjects[i] for i in chosen])
            for i, result in zip(chosen, measured):
                self.results[i][name] = result
        return self.results

    def _title(self, name: str) -> str | None:
        return name if self.progress else None

    # -- one method per measure --------------------------------------------------------
    def _parameters(self, subjects: list[Subject]) -> Results:
        results: Results = []
        for subject in subjects:
            count = count_parameters(subject.model)
            exported = count['total']
            if count['interaction']:
                # what tools/export_student.py makes of it
                student = MODELS.build(student_config(subject.cfg).model)
                exported = count_parameters(student)['total']
            results.append(dict(count, exported=exported))
        return results

    def _flops(self, subjects: list[Subject]) -> Results:
        results = []
        for subject in subjects:
            with full_proposals(subject.model), head_work(subject.model) as work:
                count = count_flops(subject.model, subject.infer)
            results.append(dict(asdict(count), work=work))
        return results

    def _inference(self, subjects: list[Subject]) -> Results:
        with _inference_mode(subjects):
            return self._timed('inference', subjects, [s.infer for s in subjects])

    def _train_step(self, subjects: list[Subject]) -> Results:
        with _training_mode(subjects):
            steps = subjects[0].step.steps
            return self._timed(
                'train_step', subjects, [s.step for s in subjects], steps
            )

    def _timed(
        self,
        name: str,
        subjects: list[Subject],
        runs: Sequence[Callable[[], object]],
        steps: int = 1,
    ) -> Results:
        """Time runs of ``steps`` steps each; seconds are those of one step."""
        works = []
        for subject, run in zip(subjects, runs):
            set_random_seed(self.setting.seed)
            with head_work(subject.model) as work:
                run()
            works.append({key: count // steps for key, count in work.items()})
        spreads = time_in_turns(
            runs,
            self.repeat,
            self.warmup,
            self.setting.seed,
            self.setting.device,
            progress=self._title(name),
        )
        spreads = [Spread([v / steps for v in spread.values]) for spread in spreads]
        return [
            dict(result, work=work, steps_per_run=steps)
            for result, work in zip(_paired(spreads, 'seconds'), works)
        ]

    def _inference_memory(self, subjects: list[Subject]) -> Results:
        with _inference_mode(subjects):
            residents = [resident_bytes(inference_tensors(s.model)) for s in subjects]
            return self._peaks(subjects, [s.infer for s in subjects], residents)

    def _train_memory(self, subjects: list[Subject]) -> Results:
        with _training_mode(subjects):
            for subject in subjects:
                subject.step.prepare()
            residents = [resident_bytes(s.step.tensors()) for s in subjects]
            return self._peaks(subjects, [s.step for s in subjects], residents)

    def _peaks(
        self,
        subjects: list[Subject],
        runs: Sequence[Callable[[], object]],
        residents: Sequence[int],
    ) -> Results:
        values: list[list[float]] = [[] for _ in runs]
        with garbage_apart():
            for turn in range(min(self.repeat, self.MEMORY_RUNS)):
                for run, resident, found in zip(runs, residents, values):
                    gc.collect()
                    set_random_seed(self.setting.seed + turn)
                    found.append(resident + peak_memory(run, self.setting.device))
        spreads = [Spread(found) for found in values]
        return [
            dict(result, resident_bytes=resident)
            for result, resident in zip(_paired(spreads, 'bytes'), residents)
        ]

    def _checkpoint(self, subjects: list[Subject]) -> Results:
        twin = self.subjects[0].model
        return [checkpoint_bytes(subject.step, twin) for subject in subjects]

    def _loader(self, subjects: list[Subject]) -> Results:
        return time_loaders(
            [PipelineTimer(subject.cfg) for subject in subjects],
            self.images,
            self.transform,
            self.setting.seed,
            progress=self._title('loader'),
        )


def _paired(spreads: Sequence[Spread], unit: str) -> Results:
    """Each spread, with its ratio to the first one, which is the twin's."""
    twin = spreads[0]
    return [
        {unit: spread.to_dict()}
        if spread is twin
        else {unit: spread.to_dict(), 'ratio': spread.over(twin).to_dict()}
        for spread in spreads
    ]


@contextmanager
def _inference_mode(subjects: Sequence[Subject]) -> Iterator[None]:
    with ExitStack() as stack:
        for subject in subjects:
            stack.enter_context(evaluation_mode(subject.model))
            stack.enter_context(full_proposals(subject.model))
        yield


@contextmanager
def _training_mode(subjects: Sequence[Subject]) -> Iterator[None]:
    with ExitStack() as stack:
        for subject in subjects:
            positives = subject.setting.positives
            stack.enter_context(full_proposals(subject.model, positives))
            subject.step.settle()
        stack.enter_context(torch.enable_grad())
        yield
