"""A teacher that stands in front of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.structures import SampleList
from torch import Tensor, nn

from lfi_mmdet.registry import build_part
from lfi_mmdet.structures import InteractionTargets

from .base import FrozenTeacher


def _setting(name: str) -> Any:
    """A setting that is read from, and written to, the teacher inside."""

    def read(wrapper: TeacherWrapper) -> Any:
        return getattr(wrapper.inner, name)

    def write(wrapper: TeacherWrapper, value: Any) -> None:
        setattr(wrapper.inner, name, value)

    return property(read, write)


class TeacherWrapper(FrozenTeacher):
    """Answers in the name of another teacher; a subclass changes some of the answers.

    All that is asked or set here is asked of, or set on, the teacher inside: texts,
    layers, features, weights, presence, checks of the dataset. So losses, tools and
    hooks need not know that there is a wrapper.

    Args:
        teacher: Config of the teacher inside.
    """

    def __init__(self, teacher: dict) -> None:
        # a second view, second texts or a second fingerprint could only differ from
        # the inner ones, so FrozenTeacher's constructor is left out on purpose
        self._inner: FrozenTeacher = build_part(
            teacher, FrozenTeacher, 'model.teacher.teacher'
        )

    @property
    def inner(self) -> FrozenTeacher:
        """The teacher inside."""
        return self._inner

    def __getattr__(self, name: str) -> Any:
        # only called for what the wrapper has not
        if name.startswith('__') or '_inner' not in vars(self):
            raise AttributeError(f'{type(self).__name__} has no {name}')
        return getattr(self._inner, name)

    # -- what FrozenTeacher defines, so that __getattr__ never sees it -----------------
    # what others set on a teacher
    present = _setting('present')
    wants_scores = _setting('wants_scores')
    wants_tokens = _setting('wants_tokens')

    @property
    def num_layers(self) -> int:
        """Those of the teacher inside."""
        return self._inner.num_layers

    @property
    def layer_names(self) -> list[str]:
        """Those of the teacher inside."""
        return self._inner.layer_names

    @property
    def num_texts(self) -> int:
        """Those of the teacher inside."""
        return self._inner.num_texts

    @property
    def more_texts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the teacher inside."""
        return self._inner.more_texts

    @property
    def feature_dims(self) -> int | None:
        """Those of the teacher inside."""
        return self._inner.feature_dims

    @property
    def needs_labels(self) -> bool:
        """Whether the teacher inside needs labels."""
        return self._inner.needs_labels

    @property
    def has_relations(self) -> bool:
        """Whether the teacher inside has relations."""
        return self._inner.has_relations

    @property
    def has_mass(self) -> bool:
        """Whether the teacher inside tells the mass of its maps."""
        return self._inner.has_mass

    def freeze(self, network: nn.Module) -> None:
        """Let the teacher inside take over a network, and note its fingerprint."""
        self._inner.freeze(network)

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Let the teacher inside encode its texts."""
        self._inner.encode_texts(class_names)

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Give the teacher inside its texts."""
        self._inner.set_class_names(class_names)

    def check_dataset(self, dataset: Any) -> None:
        """Let the teacher inside check the training dataset."""
        self._inner.check_dataset(dataset)

    def present_in(self, data_samples: SampleList) -> Tensor | None:
        """Texts that are present by the rule of the teacher inside."""
        return self._inner.present_in(data_samples)

    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """The answer of the teacher inside, unchanged."""
        return self._inner.interact(images, present)

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor | None,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """The answer of the teacher inside; see :class:`FrozenTeacher`."""
        return self._inner.targets(batch_inputs, data_samples, present, preprocessor)

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Let the teacher inside follow the detector."""
        self._inner.apply_(fn)

    def weights_hash(self) -> str:
        """That of the teacher inside."""
        return self._inner.weights_hash()

    def verify(self) -> None:
        """Verify the weights of the teacher inside."""
        self._inner.verify()


def innermost(teacher: FrozenTeacher) -> list[FrozenTeacher]:
    """The teacher that has the network, or those inside of an ensemble."""
    while isinstance(teacher, TeacherWrapper):  # it has but the name of a network
        teacher = teacher.inner
    inner = getattr(teacher, 'teachers', None)
    return [teacher] if inner is None else [x for one in inner for x in innermost(one)]


@contextmanager
def present_by_labels(teacher: FrozenTeacher) -> Iterator[None]:
    """Let the labels say which texts are present, whatever the teacher's own rule.

    Args:
        teacher: Is asked about images with labels as long as this lasts.
    """
    parts = innermost(teacher)
    rules = [part.present for part in parts]
    try:
        for part in parts:
            part.present = 'ground_truth'
        yield
    finally:
        for part, rule in zip(parts, rules):
            part.present = rule
