"""The models of a benchmark, built so that all of them do the same work."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.datasets import CocoDataset
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from torch import nn

from lfi_mmdet.engine.hooks.compile_hook import compile_parts

from .checkpoint_size import part_of
from .demo_batch import demo_data, num_classes
from .demo_store import attach_targets, write_demo_store
from .initialise import initialise_quietly
from .train_step import TrainStep, common_steps
from .variants import Variant

#: Measures that need an optimizer
TRAINING = {'train_step', 'train_memory', 'checkpoint'}


@dataclass(frozen=True)
class Setting:
    """What is the same for all models of a benchmark.

    Attributes:
        shape: (height, width) of the images in pixels, before padding.
        batch_size: Images in a training step; inference takes one.
        positives: Proposals on the objects of an image, see :func:`full_proposals`.
        device: Where the models are.
        seed: Of the weights and of the first turn.
        amp: Mixed precision in training, as ``tools/train.py --amp``.
        pretrained: Whether teachers load their weights.
        options: Changes of all configs.
    """

    shape: tuple[int, int]
    batch_size: int = 1
    positives: int = 0
    device: str = 'cpu'
    seed: int = 0
    amp: bool = False
    pretrained: bool = False
    options: dict[str, Any] | None = None


class Subject:
    """A model that is measured.

    Args:
        variant: What it is.
        setting: What is the same for all.
        twin: The model whose weights it takes over; None for the twin itself.

    Raises:
        ValueError: If it is not the twin with an interaction added.
    """

    def __init__(
        self, variant: Variant, setting: Setting, twin: Subject | None = None
    ) -> None:
        self.variant, self.setting = variant, setting
        self.cfg = variant.read_config(setting.options, setting.pretrained)
        if twin is None:
            self.model = build_detector(self.cfg, setting)
            self.names = class_names(num_classes(self.model))
            data = demo_data(len(self.names), setting.shape, setting.batch_size)
            self.data = data
        else:
            self.names, self.data = twin.names, twin.data
            if variant.targets == 'cached':
                self.model = self._build_with_store()
            else:
                self.model = build_detector(self.cfg, setting)
            take_over(self.model, twin.model, variant.name)
        image = demo_data(len(self.names), setting.shape)
        self.inputs = self.model.data_preprocessor(image)
        teacher = getattr(self.model, 'teacher', None)
        if teacher is not None and teacher.class_names is None:
            self.model.set_class_names(self.names)
        if variant.compile is not None:
            compile_parts(self.model, variant.compile)
        self._step: TrainStep | None = None

    def _build_with_store(self) -> BaseDetector:
        """Build the detector with stored targets, and give them to the samples."""
        cfg, self.data = copy.deepcopy(self.cfg), copy.deepcopy(self.data)
        with tempfile.TemporaryDirectory() as store:
            write_demo_store(cfg, self.data, self.names, store, self.setting.device)
            cfg.model.teacher = dict(type='CachedTeacher', store=store)
            model = build_detector(cfg, self.setting)
            attach_targets(self.data, store, model.teacher)
        return model

    def describe(self) -> dict[str, Any]:
        """What it is, as plain values."""
        variant, teacher = self.variant, getattr(self.model, 'teacher', None)
        return dict(
            name=variant.name,
            config=variant.config,
            targets=variant.targets,
            options=variant.options,
            compile=variant.compile,
            teacher=None if teacher is None else self.cfg.model.teacher.to_dict(),
            optimizer=type(self._step.optimizer).__name__ if self._step else None,
        )

    def infer(self) -> None:
        """Run all of the network, without the post-processing of its detections."""
        self.model(**self.inputs, mode='tensor')

    @property
    def step(self) -> TrainStep:
        """Training, with an optimizer that is made when it is first asked for."""
        if self._step is None:
            self._step = TrainStep(self.model, self.cfg, self.data, self.setting.amp)
        return self._step


def build_subjects(
    twin: Variant, variants: Sequence[Variant], setting: Setting
) -> list[Subject]:
    """Build the twin and its variants; the twin comes first."""
    first = Subject(twin, setting)
    subjects = [first, *(Subject(v, setting, first) for v in variants)]
    trained = [s for s in subjects if TRAINING & set(s.variant.measures)]
    for subject in trained:
        subject.step.steps = common_steps([s.model for s in trained])
    return subjects


def build_detector(cfg: Config, setting: Setting) -> BaseDetector:
    """Build a detector as before the first iteration, without a line per weight."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    set_random_seed(setting.seed)
    model = MODELS.build(cfg.model)
    initialise_quietly(model)
    return model.to(setting.device)


def take_over(model: BaseDetector, twin: BaseDetector, name: str) -> None:
    """Copy the twin's weights, so that both see the same proposals and samples.

    Raises:
        ValueError: If the model lacks one of them, or has more than an interaction.
    """
    weights = twin.state_dict()
    own = model.state_dict()
    extra = [key for key in own if part_of(key, set(weights)) == 'other']
    lacking = [
        key for key in weights if key not in own or own[key].shape != weights[key].shape
    ]
    if extra or lacking:
        raise ValueError(
            f'{name} is not the first config with an interaction added: of its weights '
            f'{extra[:3]} are only here and {lacking[:3]} are only there or of another '
            'shape'
        )
    model.load_state_dict(weights, strict=False)


def class_names(count: int) -> list[str]:
    """So many class names: COCO's, and made-up ones if they do not suffice."""
    names = list(CocoDataset.METAINFO['classes'])
    return (names + [f'class {i}' for i in range(len(names), count)])[:count]


def inference_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Weights that a deployed detector keeps in memory."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [tensor for name, tensor in named if not name.startswith('distiller.')]
