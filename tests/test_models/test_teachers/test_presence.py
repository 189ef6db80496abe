"""Which texts count as present: by the labels, or by the teacher's own scores."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from lfi_mmdet.models.teachers.presence import (
    TeacherPresence,
    note_labels,
    present_texts,
)


def samples(*labels):
    found = []
    for own in labels:
        sample = DetDataSample(metainfo=dict(img_path='photo.jpg', img_shape=(8, 8)))
        sample.gt_instances = InstanceData(labels=torch.tensor(own).long())
        found.append(sample)
    return found


def test_the_classes_of_the_instances_are_present_or_all_are():
    batch = samples([2, 0, 2], [])
    present = present_texts('ground_truth', batch, 3)
    assert present.tolist() == [[True, False, True], [False] * 3]
    assert present_texts('all', batch, 3).all()
    with pytest.raises(ValueError, match='photo.jpg has label 2.* only 2 texts'):
        present_texts('ground_truth', batch, 2)


def test_labels_are_noted_before_they_are_sent_to_the_device():
    preprocessor = DetDataPreprocessor()
    preprocessor.register_forward_pre_hook(note_labels)
    data = dict(inputs=[torch.zeros(3, 8, 8)] * 2, data_samples=samples([1], [0, 2]))
    batch = preprocessor(data, training=True)['data_samples']
    for sample in batch:  # as if they had left: their values cannot be read
        sample.gt_instances.labels = sample.gt_instances.labels.to('meta')
    present = present_texts('ground_truth', batch, 3)
    assert present.tolist() == [[False, True, False], [True, False, True]]


@pytest.mark.parametrize('call', [
    lambda p: p(data=dict(inputs=[torch.zeros(3, 8, 8)], data_samples=samples([1]))),
    lambda p: p(dict(inputs=[torch.zeros(3, 8, 8)])),
    lambda p: p(dict(inputs=[torch.zeros(3, 8, 8)],
                     data_samples=[DetDataSample(metainfo=dict(img_shape=(8, 8)))])),
])  # fmt: skip
def test_a_batch_without_labels_passes(call):
    preprocessor = DetDataPreprocessor()
    preprocessor.register_forward_pre_hook(note_labels)
    assert call(preprocessor)['inputs'].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    'options, expected',
    [
        (dict(threshold=0.3), [0, 1, 3]),
        (dict(threshold=0.3, top=2), [0, 3]),
        (dict(threshold=0.0, top=9), [0, 1, 2, 3]),
        (dict(threshold=0.9), []),
    ],
)
def test_the_best_scores_above_a_threshold_are_present(options, expected):
    present = TeacherPresence(**options)(torch.tensor([[0.6, 0.3, 0.1, 0.7]]))
    assert present.nonzero()[:, 1].tolist() == expected
