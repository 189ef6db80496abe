"""A control: a teacher that looks at another image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionTargets

from .base import FrozenTeacher
from .wrapper import TeacherWrapper

#: What of a data sample says which texts are asked; it stays with its image
TEXT_KEYS = ('captions',)


@dataclass(frozen=True)
class SeenImage:
    """An image without padding, (3, h, w), and its data sample."""

    pixels: Tensor
    sample: DetDataSample


def image_key(sample: DetDataSample) -> Any:
    """What tells an image from others: its path, or else its id."""
    path = sample.get('img_path')
    key = sample.get('img_id') if path is None else path
    return id(sample) if key is None else key


@MODELS.register_module()
class ShuffledTeacher(TeacherWrapper):
    """Gives each image what the teacher inside says of another image.

    The other image is asked about the texts of the image itself, present or not, so
    that texts and their number stay what they are, and maps, features, relations, log
    masses and dense tokens keep the distribution they have over the dataset. Only what
    they have to do with the image is gone. If a student gains as much from this teacher
    as from the one inside, it gains from smoothness, from where objects usually are or
    from more parameters, not from what the teacher sees.

    The other image is the previous one of the batch, of the first the last one, but
    never one with the same path (or id): a batch may hold an image twice. An image that
    is alone in its batch gets one of the last two different images before it. The very
    first, if alone, has no other image; no text is present in its targets, so that it
    is not supervised. Nothing is drawn and processes exchange nothing, so with two
    images or more per batch a resumed training goes on exactly as an uninterrupted one.

    Args:
        teacher: Config of the teacher inside, which must see images or masks by itself:
            stored targets hold nothing about the texts of other images.

    Raises:
        ValueError: If the teacher inside cannot be asked about another image.
    """

    #: What it says depends on the other images of the batch, so a store makes no sense
    cacheable = False

    def __init__(self, teacher: dict) -> None:
        super().__init__(teacher)
        if type(self.inner).__call__ is not FrozenTeacher.__call__:
            raise ValueError(
                f'ShuffledTeacher cannot ask {type(self.inner).__name__} about another '
                'image, as it makes its targets in a way of its own; put '
                'ShuffledTeacher around the teacher that sees the images'
            )
        if hasattr(self.inner, 'teachers'):
            raise ValueError(
                'ShuffledTeacher cannot ask several teachers at once, each of which '
                'decides what is present; put one around each of teacher.teachers: '
                'they all look at the same other image'
            )
        self._before: list[SeenImage] = []

    def present_in(self, data_samples: SampleList) -> Tensor | None:
        """Texts of the images themselves; none where there is no other image."""
        present = self.inner.present_in(data_samples)
        if present is None:
            return None
        alone = [place is None for place in self._others(data_samples)]
        return present & ~torch.tensor(alone)[:, None]

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor | None,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """Ask about the texts of each image in another one."""
        places = self._others(data_samples)
        if present is None:  # the teacher decides, looking at the image itself
            own = self.inner.targets(batch_inputs, data_samples, None, preprocessor)
            told = torch.tensor([place is not None for place in places])
            present = own.present & told.to(own.present.device)[:, None]
        images = [
            SeenImage(pixels[:, : sample.img_shape[0], : sample.img_shape[1]], sample)
            for pixels, sample in zip(batch_inputs, data_samples)
        ]
        known = [*self._before, *images]
        # one without another image asks itself for nothing
        others = [
            image if place is None else known[place]
            for image, place in zip(images, places)
        ]
        targets = self.inner.targets(
            _stack([other.pixels.to(batch_inputs) for other in others]),
            [_with_texts_of(s, other.sample) for s, other in zip(data_samples, others)],
            present,
            preprocessor,
        )
        self._remember(images)
        return replace(targets, present=present)

    def _others(self, data_samples: SampleList) -> list[int | None]:
        """Which of the remembered images and then the batch stands for each image."""
        seen = [image_key(image.sample) for image in self._before]
        keys = [image_key(sample) for sample in data_samples]
        first, count = len(seen), len(keys)
        places: list[int | None] = []
        for index, key in enumerate(keys):
            around = [first + (index - step) % count for step in range(1, count)]
            order = [*around, *reversed(range(first))]
            known = [*seen, *keys]
            places.append(next((i for i in order if known[i] != key), None))
        return places

    def _remember(self, images: list[SeenImage]) -> None:
        """Keep the last two different images: the next image is at most one of them."""
        last: dict[Any, SeenImage] = {}
        for image in reversed(images):  # a view would keep the whole batch alive
            if len(last) < 2 and image_key(image.sample) not in last:
                copied = SeenImage(image.pixels.clone(), image.sample)
                last[image_key(image.sample)] = copied
        for image in reversed(self._before):
            if len(last) < 2:
                last.setdefault(image_key(image.sample), image)
        self._before = list(reversed(last.values()))


def _with_texts_of(own: DetDataSample, other: DetDataSample) -> DetDataSample:
    """The data sample of another image, with the texts of this one."""
    mixed = other.new()
    for key in TEXT_KEYS:
        if key in own:
            mixed.set_metainfo({key: own.get(key)})
    return mixed


def _stack(images: list[Tensor]) -> Tensor:
    """Pad images (3, h, w) at the right and the bottom, and stack them."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    return torch.stack(
        [
            F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
            for image in images
        ]
    )
