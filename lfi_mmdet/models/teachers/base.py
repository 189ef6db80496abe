"""The one class that every teacher derives from."""

from __future__ import annotations

import hashlib
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.logging import print_log
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionTargets

from .presence import present_texts
from .view import TeacherView


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
            classes of the instances) or ``'all'``.
    """

    #: Names of the accepted ``present`` choices
    PRESENT: tuple[str, ...] = ('ground_truth', 'all')

    def __init__(self, view: dict, present: str = 'ground_truth') -> None:
        if present not in self.PRESENT:
            raise ValueError(
                f'teacher.present={present!r} is not known; choose from {self.PRESENT}'
            )
        self.present = present
        self.view = TeacherView(**view)
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
    def feature_dims(self) -> int | None:
        """Channels C of the text-conditioned features; None without features."""
        return None

    @abstractmethod
    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Prepare the text side, once; called by :meth:`set_class_names`."""

    @abstractmethod
    def interact(self, images: Tensor, present: Tensor) -> InteractionTargets:
        """Read the attention maps off the network.

        Args:
            images: (B, 3, S, S), resized and normalised for this teacher.
            present: Bool (B, T), the texts whose maps are wanted.
        """

    # -- what every teacher does -----------------------------------------------------
    def freeze(self, network: nn.Module) -> None:
        """Take over a loaded network: eval mode, no gradients, fingerprint taken."""
        self.network = network.eval().requires_grad_(False)
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

    @torch.no_grad()
    def __call__(
        self, batch_inputs: Tensor, data_samples: SampleList, preprocessor: nn.Module
    ) -> InteractionTargets:
        """Targets for a batch as the student sees it: augmented, normalised, padded.

        Args:
            batch_inputs: (B, 3, H, W) out of the student's data preprocessor.
            data_samples: Their data samples, with ``img_shape`` and, for
                ``present='ground_truth'``, the ground truth.
            preprocessor: The student's data preprocessor; its ``mean`` and ``std``
                are undone.
        """
        if self.class_names is None:
            raise RuntimeError(
                f'{type(self).__name__} has no texts yet: give the class names as '
                'teacher.class_names, or train with custom_hooks=[dict('
                "type='ClassNamesHook')], which takes them from the dataset"
            )
        present = present_texts(self.present, data_samples, len(self.class_names))
        present = present.to(batch_inputs.device, non_blocking=True)
        return self.targets(batch_inputs, data_samples, present, preprocessor)

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """Make the teacher's view of the batch and read the maps off it."""
        images = self.view(batch_inputs, data_samples, preprocessor)
        return self.interact(images, present)

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
