"""Run the teacher of a config on its own, asked about every class of every image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import Config
from torch import Tensor, nn

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.registry import build_part
from lfi_mmdet.structures import InteractionTargets

#: Stands for the reading of a teacher that takes no such argument
AS_CONFIGURED = 'as configured'


@dataclass
class TeacherBatch:
    """One batch and what the teacher says about all classes.

    Attributes:
        inputs: The normalised, padded images, (B, 3, H, W).
        data_samples: Their B data samples.
        targets: All T texts.
    """

    inputs: Tensor
    data_samples: SampleList
    targets: InteractionTargets


class TeacherTrial:
    """The teacher of a config in one reading, without a student.

    Args:
        cfg: Config of a detector.
        teacher: Config of the teacher, see :func:`trial_config`.
        class_names: Of the dataset.
        device: Where it runs.
    """

    def __init__(
        self,
        cfg: Config,
        teacher: dict,
        class_names: Sequence[str],
        device: str | torch.device = 'cpu',
    ) -> None:
        self.preprocessor: nn.Module = MODELS.build(cfg.model.data_preprocessor)
        self.preprocessor.to(device)
        self.teacher = build_part(teacher, FrozenTeacher, 'model.teacher')
        known = self.teacher.class_names
        if known is None:
            self.teacher.set_class_names(class_names)
        elif known != tuple(class_names):
            odd = sorted(set(known) ^ set(class_names)) or 'the order'
            raise InputError(
                f'model.teacher.class_names differ from those of the dataset in {odd}'
            )
        self.teacher.apply_(lambda value: value.to(device))
        for one in _members(self.teacher):
            one.wants_scores = True

    def run(self, batches: Iterable[dict]) -> Iterator[TeacherBatch]:
        """Ask the teacher about the batches of a dataloader."""
        for batch in batches:
            batch = self.preprocessor(batch, training=False)
            inputs, samples = batch['inputs'], batch['data_samples']
            targets = self.teacher(inputs, samples, self.preprocessor, compact=False)
            yield TeacherBatch(inputs, samples, targets)


def _members(teacher: FrozenTeacher) -> Iterator[FrozenTeacher]:
    """A teacher and, of several at once, each of them."""
    yield teacher
    for one in getattr(teacher, 'teachers', ()):
        yield from _members(one)


def teacher_class(teacher: dict) -> type[FrozenTeacher]:
    """Class of a teacher's config.

    Raises:
        KeyError: If it is not registered.
        TypeError: If it is no teacher.
    """
    found = teacher.get('type')
    if isinstance(found, str):
        found = MODELS.get(found)
    if not (isinstance(found, type) and issubclass(found, FrozenTeacher)):
        build_part(teacher, FrozenTeacher, 'model.teacher')  # says what is wrong
    return found  # type: ignore[return-value]


def accepted_arguments(cls: type) -> set[str]:
    """Names of the arguments a class takes, also those it hands on to its bases."""
    names: set[str] = set()
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(vars(base)['__init__']).parameters.values()
        kinds = (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        names |= {p.name for p in parameters if p.kind in kinds}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def readings_of(cls: type[FrozenTeacher]) -> tuple[str, ...]:
    """All readings of a class of teachers."""
    takes = 'reading' in accepted_arguments(cls)
    return tuple(cls.READINGS) if takes else (AS_CONFIGURED,)


def trial_config(
    teacher: dict,
    reading: str,
    layers: str | Sequence[int] = 'all',
    heads: str | None = None,
) -> dict:
    """Config of a teacher that is asked about all classes, in one reading.

    Teachers that read captions are asked about class prompts.

    Args:
        teacher: Config of the teacher; not changed.
        reading: One of :func:`readings_of`.
        layers: Passed on to teachers that choose among layers.
        heads: Passed on to teachers that can keep heads apart; None leaves what the
            config says.

    Raises:
        InputError: If the teacher has no such reading, or cannot choose layers or
            heads.
    """
    cls = teacher_class(teacher)
    accepted, known = accepted_arguments(cls), readings_of(cls)
    if reading not in known:
        raise InputError(
            f'{cls.__name__} has no reading {reading!r}; choose from {list(known)}'
        )
    cfg = _ask_all(teacher)
    if reading != AS_CONFIGURED:
        cfg['reading'] = reading
    if 'layers' in accepted:
        cfg['layers'] = layers
    elif layers != 'all':
        raise InputError(f'{cls.__name__} takes no layers; leave out --layers')
    if heads is not None:
        if 'heads' not in accepted:
            raise InputError(f'{cls.__name__} takes no heads; leave out --heads')
        cfg['heads'] = heads
    return cfg


def _ask_all(teacher: dict) -> dict:
    """Copy of a config in which all classes are present, for each of its teachers."""
    cfg: dict[str, Any] = copy.deepcopy(dict(teacher))
    accepted = accepted_arguments(teacher_class(teacher))
    if 'present' in accepted:
        cfg['present'] = 'all'
    if cfg.get('texts') == 'captions':
        cfg.update(texts='classes', max_free=0)
    cfg.pop('more_texts', None)  # no labels tell where they are
    if 'teachers' in cfg:
        cfg['teachers'] = [_ask_all(one) for one in cfg['teachers']]
    if cfg.get('teacher'):  # that of a wrapper
        cfg['teacher'] = _ask_all(cfg['teacher'])
    return cfg


def check_masks(dataset: Any, count: int) -> None:
    """Check that objects have masks, before images are loaded.

    Args:
        dataset: Built dataset of mmdet.
        count: Images to look at, the first ones.

    Raises:
        InputError: If an object has none.
    """
    for index in range(min(count, len(dataset))):
        info = dataset.get_data_info(index)
        if any('mask' not in instance for instance in info.get('instances', [])):
            raise InputError(
                f'{info.get("img_path", "an image")} has objects without masks, and a '
                'teacher is judged by whether its maps lie on them; take a dataset '
                'with masks'
            )
