"""A control: a teacher whose network has learned nothing."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .base import FrozenTeacher
from .wrapper import TeacherWrapper, innermost


@MODELS.register_module()
class RandomTeacher(TeacherWrapper):
    """The teacher inside, with the numbers of each of its weight tensors shuffled.

    Every tensor (also biases, positions, and weights and statistics of norms) keeps its
    distribution, so that the network is as sharp as a trained one, but which number
    stands where is random: what it has learned is gone. For freshly initialised weights
    instead, of which the attention is nearly uniform, leave out this class and set
    ``pretrained=None`` in a teacher from open_clip.

    The texts are encoded by the shuffled network as well.

    Args:
        teacher: Config of the teacher inside; it must have a network. Several at once
            are shuffled one by one.
        seed: Another seed, another network; the same in every process.

    Raises:
        ValueError: If a teacher has no network, or nothing in it can be shuffled.
    """

    def __init__(self, teacher: dict, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f'teacher.seed={seed} is negative')
        super().__init__(teacher)
        self.seed = seed
        for one in innermost(self.inner):
            _randomise(one, seed)


def _randomise(teacher: FrozenTeacher, seed: int) -> None:
    """Shuffle the weights of a teacher before anybody has seen what it says."""
    network = teacher.network
    if network is None:
        raise ValueError(
            f'teacher.teacher.type={type(teacher).__name__!r} has no network whose '
            'weights could be random; RandomTeacher goes around a vision-language '
            "model such as dict(type='CoCaTeacher', ...)"
        )
    before = teacher.weights_hash()
    shuffle_weights(network, seed)
    if teacher.weights_hash() == before:
        raise ValueError(
            f'the network of {type(teacher).__name__} is the same with its weights '
            'shuffled: they are constant'
        )
    teacher.freeze(network)  # notes the fingerprint of the new weights
    if teacher.class_names is not None:
        teacher.set_class_names(teacher.class_names)


@torch.no_grad()
def shuffle_weights(network: nn.Module, seed: int) -> None:
    """Shuffle the numbers within each parameter and each running statistic, in place.

    Other buffers, such as masks and indices, are part of the architecture and stay.

    Args:
        network: On any device.
        seed: The same weights for the same seed, on any machine.
    """
    learned: dict[str, Tensor] = dict(network.named_parameters())
    for name, module in network.named_modules():
        if isinstance(module, _NormBase):
            for key in ('running_mean', 'running_var'):
                value = getattr(module, key)
                if value is not None:
                    learned[f'{name}.{key}'] = value
    generator = torch.Generator().manual_seed(seed)
    for _, value in sorted(learned.items()):
        order = torch.randperm(value.numel(), generator=generator)
        value.copy_(value.flatten()[order.to(value.device)].view_as(value))
