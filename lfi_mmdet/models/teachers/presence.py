"""Which texts count as present in an image."""

from __future__ import annotations

import torch
from mmdet.structures import SampleList
from torch import Tensor


def present_texts(rule: str, data_samples: SampleList, num_texts: int) -> Tensor:
    """Mark the texts that describe each image.

    Args:
        rule: ``'ground_truth'``: the classes of the image's instances; ``'all'``.
        data_samples: B data samples; ``gt_instances.labels`` is read.
        num_texts: T, one text per class.

    Returns:
        Bool (B, T) on the CPU.

    Raises:
        ValueError: If a label has no text.
    """
    if rule == 'all':
        return torch.ones(len(data_samples), num_texts, dtype=torch.bool)
    present = torch.zeros(len(data_samples), num_texts, dtype=torch.bool)
    for row, sample in zip(present, data_samples):
        labels = sample.gt_instances.labels.cpu()
        if labels.numel() and int(labels.max()) >= num_texts:
            raise ValueError(
                f'{sample.get("img_path", "an image")} has label {int(labels.max())}, '
                f'but the teacher has only {num_texts} texts'
            )
        row[labels] = True
    return present
