"""Fresh scenes and their captions, drawn on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import torch
from mmdet.registry import DATASETS
from torch.utils.data import Dataset

from .shapes.captions import captions
from .shapes.config import SceneConfig
from .shapes.render import render
from .shapes.scene import sample_scene


@DATASETS.register_module()
class CaptionScenes(Dataset):
    """Pairs of a scene and one caption; no boxes, masks or labels.

    Scene i is drawn when it is asked for, the same whenever and by whomever that is,
    so that a dataset of any length costs no space, and a model that runs through it
    once never sees a scene twice.

    Args:
        length (int): Number of scenes.
        seed (int): Of the scenes.
        domains (Sequence[str]): Painting styles, in turns; a style that is named
            twice comes twice as often.
        split (str): Name of the stream. Scenes of another stream are other scenes; a
            written dataset uses 'train', 'val' and 'unlabeled'. Defaults to 'captions'.
        **scene: Keyword arguments of :class:`SceneConfig`.

    Raises:
        ValueError: If there are no scenes or no domains, or a choice of the scenes is
            out of range.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        domains: Sequence[str] = ('photo',),
        split: str = 'captions',
        **scene: Any,
    ) -> None:
        if length < 1:
            raise ValueError(f'dataset.length={length}; at least 1')
        if isinstance(domains, str) or not domains:
            raise ValueError(f'dataset.domains={domains!r} is not a list of domains')
        self.length, self.seed, self.split = length, seed, split
        self.configs = [SceneConfig(domain=domain, **scene) for domain in domains]

    @property
    def metainfo(self) -> dict[str, Any]:
        """The names of the classes, as mmdet's datasets tell them."""
        return dict(classes=self.configs[0].class_names)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``inputs``, an RGB image (3, S, S), uint8, and its ``caption``."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        cv2.setNumThreads(1)
        config = self.configs[index % len(self.configs)]
        scene = sample_scene(self.seed, self.split, index, config)
        image = torch.from_numpy(render(scene)).permute(2, 0, 1).contiguous()
        return dict(inputs=image, caption=next(captions(scene)))
