"""Which texts count as present in an image."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor, nn

from lfi_mmdet.engine.preflight import InputError, iter_datasets

#: What to do about it
NO_LABELS = (
    "choose teacher.present='teacher', 'captions' or 'all', or "
    "teacher.texts='captions' with present='all'"
)


def present_texts(rule: str, data_samples: SampleList, num_texts: int) -> Tensor:
    """Mark the texts that describe each image.

    Args:
        rule: ``'ground_truth'``: the classes of the image's instances; ``'all'``.
        data_samples: B data samples; ``gt_instances.labels`` is read, or what
            :func:`note_labels` has kept of it on the CPU.
        num_texts: T, one text per class.

    Returns:
        Bool (B, T) on the CPU.

    Raises:
        ValueError: If an image has no labels, or a label has no text.
    """
    if rule == 'all':
        return torch.ones(len(data_samples), num_texts, dtype=torch.bool)
    present = torch.zeros(len(data_samples), num_texts, dtype=torch.bool)
    for row, sample in zip(present, data_samples):
        labels = sample.get('gt_labels')
        if labels is None:
            labels = _labels_of(sample)
        if labels.numel() and int(labels.max()) >= num_texts:
            raise ValueError(
                f'{sample.get("img_path", "an image")} has label {int(labels.max())}, '
                f'but the teacher has only {num_texts} texts'
            )
        row[labels] = True
    return present


def _labels_of(sample: DetDataSample) -> Tensor:
    instances = sample.get('gt_instances')
    if instances is None or 'labels' not in instances:
        raise ValueError(
            f'{sample.get("img_path", "an image")} has no labels, which '
            "teacher.present='ground_truth', and GroundTruthTeacher in any case, need: "
            "put dict(type='LoadAnnotations', with_bbox=True) into the pipeline; for "
            f'images without labels {NO_LABELS}'
        )
    return instances.labels.cpu()


def check_labels(dataset: Any, key: str) -> None:
    """Check that a teacher that needs labels gets some from every dataset.

    Args:
        dataset: Built dataset, possibly wrapped. Datasets whose images have no list of
            ``instances`` are left alone.
        key: Where the config gives it, for messages.

    Raises:
        InputError: If no image of a dataset has any.
    """
    for inner, part in iter_datasets(dataset, key):
        if not hasattr(part, 'get_data_info') or not len(part):
            continue
        infos = (part.get_data_info(i) for i in range(len(part)))
        if not any(info.get('instances', True) for info in infos):
            raise InputError(
                f'{inner}: no image of {getattr(part, "ann_file", None) or "it"} has '
                "a label, which teacher.present='ground_truth', and GroundTruthTeacher "
                f'in any case, need; {NO_LABELS}'
            )


def note_labels(module: nn.Module, args: tuple) -> None:
    """Forward pre-hook of a data preprocessor: keep the labels on the CPU as well.

    The preprocessor moves the ground truth to the device, from where asking which
    classes an image shows would make the host wait in every step.
    """
    data = args[0] if args else None
    for sample in data.get('data_samples') or () if isinstance(data, dict) else ():
        instances = sample.get('gt_instances')
        if instances is not None and 'labels' in instances:
            if instances.labels.device.type == 'cpu':
                sample.set_metainfo(dict(gt_labels=instances.labels.clone()))


class TeacherPresence:
    """The teacher's own verdict on which texts describe an image.

    Args:
        threshold: Least score, from 0 to 1, of a text that counts as present.
        top: At most so many texts count, those with the highest scores.
    """

    def __init__(self, threshold: float = 0.05, top: int = 10) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(
                f'teacher.presence.threshold={threshold} is not between 0 and 1'
            )
        if top < 1:
            raise ValueError(f'teacher.presence.top={top} is less than 1')
        self.threshold, self.top = threshold, top

    def __call__(self, scores: Tensor) -> Tensor:
        """Mark texts.

        Args:
            scores: (B, T), from 0 to 1.

        Returns:
            Bool (B, T), on the same device.
        """
        best = scores.topk(min(self.top, scores.shape[1]), dim=1).indices
        among = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
        return among & (scores >= self.threshold)
