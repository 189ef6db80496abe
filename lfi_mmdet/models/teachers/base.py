"""The one class that every teacher derives from."""

from __future__ import annotations

import hashlib
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.logging import print_log
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionTargets

from .presence import TeacherPresence, present_texts
from .tiles import stitch_targets
from .view import TeacherView


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check an argument of a teacher.

    Raises:
        ValueError: If it is none of the choices.
    """
    if value not in choices:
        raise ValueError(
            f'teacher.{name}={value!r} is not known; choose from {tuple(choices)}'
        )


class FrozenTeacher(metaclass=ABCMeta):
    """A frozen vision-language teacher and the contracts it keeps (DESIGN section 4).

    It is deliberately not an ``nn.Module``: assigned to a detector, it appears
    neither in ``state_dict`` nor among the parameters, so optimizers, EMA, DDP
    buckets and checkpoints never see it. It stays in eval mode for the same reason.
    The detector forwards ``to/half/cuda`` through :meth:`apply_`, and ``deepcopy``
    shares the teacher instead of cloning it.

    Args:
        view: Keyword arguments of :class:`TeacherView` (image size, mean, std).
        present: Which texts count as present in an image: ``'ground_truth'`` (the
            classes of the instances), ``'teacher'`` (its own score, for teachers
            that have one) or ``'all'``.
        presence: With ``present='teacher'``, keyword arguments of
            :class:`TeacherPresence`.
        reading: How maps are read off, one of the class's ``READINGS``; None for
            the first of them.
        precision: ``'bfloat16'`` or ``'float16'`` rounds the network's weights and
            runs it in that type, whatever autocast says; None leaves it as it is
            loaded.
        teacher_view: ``'resize'`` (one view of the whole image) or ``'tiles'``, see
            :class:`TeacherView`.
        tiles: Rows and columns of tiles.
        overlap: Pixels of the teacher's input by which tiles overlap.
    """

    #: Names of the accepted ``present`` choices
    PRESENT: tuple[str, ...] = ('ground_truth', 'all')
    #: Names of the accepted ``reading`` choices, the default first
    READINGS: tuple[str, ...] = ('attention',)
    #: Texts that are asked for after those of the classes
    more_texts: tuple[str, ...] = ()
    #: Names of the accepted ``precision`` choices
    PRECISIONS = ('bfloat16', 'float16')

    def __init__(
        self,
        view: dict,
        present: str = 'ground_truth',
        presence: dict | None = None,
        reading: str | None = None,
        precision: str | None = None,
        teacher_view: str = 'resize',
        tiles: Sequence[int] = (2, 2),
        overlap: int = 0,
    ) -> None:
        check_choice('present', present, self.PRESENT)
        reading = self.READINGS[0] if reading is None else reading
        check_choice('reading', reading, self.READINGS)
        if precision is not None:
            check_choice('precision', precision, self.PRECISIONS)
        self.present, self.reading, self.precision = present, reading, precision
        self.presence = TeacherPresence(**(presence or {}))
        #: Whether targets shall carry the teacher's scores, where it has any
        self.wants_scores = present == 'teacher'
        #: Channels of the dense tokens it can give: ``'tower'``, as they come out of
        #: the image tower, and ``'joint'``, in the joint space of images and texts
        self.token_dims: dict[str, int] = {}
        #: Which of these targets shall carry; None for none
        self.wants_tokens: str | None = None
        self.view = TeacherView(
            **view, teacher_view=teacher_view, tiles=tiles, overlap=overlap
        )
        self.network: nn.Module | None = None
        self.class_names: tuple[str, ...] | None = None
        #: What :meth:`encode_texts` keeps; plain tensors that follow :meth:`apply_`
        self.texts: dict[str, Tensor] = {}
        self._fingerprint: str | None = None

    # -- what a teacher says about itself ------------------------------------------
    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of layers L that :meth:`interact` returns."""

    @property
    def layer_names(self) -> list[str]:
        """A name for each of the layers, as tables show it."""
        layers = getattr(self, 'layers', range(self.num_layers))
        return [str(layer) for layer in layers]

    @property
    def num_texts(self) -> int:
        """Number of rows T of the targets: classes, then :attr:`more_texts`."""
        return len(self.class_names or ()) + len(self.more_texts)

    @property
    def feature_dims(self) -> int | None:
        """Channels C of the text-conditioned features; None without features."""
        return None

    @property
    def needs_labels(self) -> bool:
        """Whether images without labels would teach nothing."""
        return self.present == 'ground_truth'

    @property
    def has_relations(self) -> bool:
        """Whether targets tell the cosines between features."""
        return self.feature_dims is not None

    @property
    def has_mass(self) -> bool:
        """Whether targets tell what each map summed to before it was normalised."""
        return True

    @abstractmethod
    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Prepare the text side, once; called by :meth:`set_class_names`."""

    @abstractmethod
    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """Read the attention maps off the network.

        Args:
            images: (B, 3, S, S), resized and normalised for this teacher.
            present: Bool (B, T) on the CPU, the texts whose maps are wanted; None
                lets the teacher's own score decide (only asked of teachers that
                have ``'teacher'`` among ``PRESENT``).
        """

    def check_dataset(self, dataset: Any) -> None:
        """Check the training dataset before the first iteration; nothing by default.

        Args:
            dataset: Built dataset, possibly wrapped.
        """
        del dataset

    # -- what every teacher does -----------------------------------------------------
    def freeze(self, network: nn.Module) -> None:
        """Take over a loaded network: eval mode, no gradients, fingerprint taken."""
        if self.precision is not None:
            network = network.to(getattr(torch, self.precision))
        self.network = network.eval().requires_grad_(False)
        if hasattr(self, 'grid_size'):
            self.view.overlap_in_patches(self.grid_size)  # complains if it cannot be
        self._fingerprint = self.weights_hash()
        count = sum(p.numel() for p in network.parameters())
        print_log(
            f'teacher {type(self).__name__}: {count / 1e6:.1f}M parameters, frozen, '
            f'weights sha256 {self._fingerprint[:12]}',
            logger='current',
        )

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Encode one text per class; query k belongs to class k."""
        self.class_names = tuple(class_names)
        self.encode_texts(self.class_names)

    def __call__(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        preprocessor: nn.Module,
        compact: bool = True,
    ) -> InteractionTargets:
        """Targets for a batch as the student sees it: augmented, normalised, padded.

        Args:
            batch_inputs: (B, 3, H, W) out of the student's data preprocessor.
            data_samples: Their data samples, with ``img_shape`` and, for
                ``present='ground_truth'``, the ground truth.
            preprocessor: The student's data preprocessor; its ``mean`` and ``std``
                are undone.
            compact: Return only the rows of present texts, see
                :meth:`InteractionTargets.select`, where they are known on the CPU.
        """
        if self.class_names is None:
            raise RuntimeError(
                f'{type(self).__name__} has no texts yet: give the class names as '
                'teacher.class_names, or train with custom_hooks=[dict('
                "type='ClassNamesHook')], which takes them from the dataset"
            )
        present = self.present_in(data_samples)
        # gradients cannot be taken through inference tensors
        gradient = self.reading == 'gradient'
        guard = torch.no_grad() if gradient else torch.inference_mode()
        with guard, self._autocast(batch_inputs.device.type):
            targets = self.targets(batch_inputs, data_samples, present, preprocessor)
        if compact and present is not None:
            targets = targets.select(present)
        if not gradient:
            targets = targets.map(torch.clone)  # ordinary tensors, fit for a loss
        device = batch_inputs.device
        return targets.map(lambda value: value.to(device, non_blocking=True))

    def _autocast(self, device_type: str) -> AbstractContextManager:
        """Switch autocast off for rounded weights; it would mix two types of them."""
        weights = iter(()) if self.network is None else self.network.parameters()
        if next((w.dtype for w in weights), torch.float32) == torch.float32:
            return nullcontext()
        return torch.autocast(device_type, enabled=False)

    def present_in(self, data_samples: SampleList) -> Tensor | None:
        """Texts that describe each image, bool (B, T) on the CPU.

        None means that the teacher's own score decides.
        """
        if self.present == 'teacher':
            return None
        return present_texts(self.present, data_samples, self.num_texts)

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor | None,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """Make the teacher's view of the batch and read the maps off it."""
        images = self.view(batch_inputs, data_samples, preprocessor)
        present = self.view.per_tile(present)
        return stitch_targets(self.interact(images, present), self.view)

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the detector's ``to``, ``half``, ``cuda`` (see ``Module._apply``)."""
        if self.network is not None:
            # rounding to half precision is no tampering: check before, note after
            rounds = any(
                fn(value.new_empty(0)).dtype != value.dtype
                for value in self.network.state_dict().values()
            )
            if rounds:
                self.verify()
            self.network._apply(fn)
            if rounds:
                self._fingerprint = self.weights_hash()
        self.texts = {name: fn(value) for name, value in self.texts.items()}

    def weights_hash(self) -> str:
        """SHA-256 over names and float32 values of all weights."""
        digest = hashlib.sha256()
        if self.network is not None:
            for name, value in sorted(self.network.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def verify(self) -> None:
        """Check that nothing has touched the weights since they were loaded.

        Raises:
            RuntimeError: If a weight differs from what :meth:`freeze` saw.
        """
        if self.network is None:
            return
        found = self.weights_hash()
        if self._fingerprint is not None and found != self._fingerprint:
            raise RuntimeError(
                f'the weights of {type(self).__name__} changed after they were loaded '
                f'(sha256 {found[:12]}, was {self._fingerprint[:12]}); '
                'something re-initialised or trained the teacher'
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self
