"""Ground truth fits the image, and no image is left out, repeated or shuffled."""

import copy
import json
from pathlib import Path

import pytest
import torch

from lfi_mmdet.evaluation import interaction_dataloader


@pytest.fixture
def config(tiny_config):
    return copy.deepcopy(tiny_config)


def drop_annotations(config, image_id: int, keys=()) -> None:
    """Write a copy of the annotations without an image's, or without some keys."""
    for name in ('train_dataloader', 'val_dataloader'):
        leaf = config[name].dataset
        path = Path(leaf.data_root) / leaf.ann_file
        content = json.loads(path.read_text())
        content['annotations'] = [
            {key: value for key, value in annotation.items() if key not in keys}
            for annotation in content['annotations']
            if annotation['image_id'] != image_id
        ]
        (path.parent / 'fewer.json').write_text(json.dumps(content))
    for name in ('train_dataloader', 'val_dataloader'):
        config[name].dataset.ann_file = 'fewer.json'


def ids(loader) -> list[int]:
    return [sample.img_id for batch in loader for sample in batch['data_samples']]


@pytest.mark.parametrize('split', ['val', 'train'])
def test_boxes_and_masks_are_resized_with_the_image(config, split):
    resize = config.val_dataloader.dataset.pipeline[1]
    small = next(iter(interaction_dataloader(config, split)))
    resize.scale = (128, 128)
    large = next(iter(interaction_dataloader(config, split)))
    assert large['inputs'][0].shape[1:] == (128, 128)
    ours, theirs = (b['data_samples'][0].gt_instances for b in (large, small))
    torch.testing.assert_close(ours.bboxes.tensor, 2 * theirs.bboxes.tensor)
    assert (ours.masks.height, ours.masks.width) == (128, 128)
    assert ours.masks.areas.sum() == pytest.approx(
        4 * theirs.masks.areas.sum(), rel=0.1
    )


@pytest.mark.parametrize('split', ['val', 'train'])
def test_every_image_comes_once_in_order_also_empty_ones(config, split):
    drop_annotations(config, image_id=2)
    loader = interaction_dataloader(config, split)
    assert ids(loader) == [1, 2, 3, 4]
    assert len(list(loader)[1]['data_samples'][0].gt_instances) == 0


def test_the_first_images_are_taken_and_batches_have_the_wanted_size(config):
    loader = interaction_dataloader(config, max_images=3, batch_size=2)
    assert [len(batch['inputs']) for batch in loader] == [2, 1]
    assert ids(loader) == [1, 2, 3]


def test_the_training_images_go_through_the_test_pipeline(config):
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline.insert(3, dict(type='RandomFlip', prob=1.0))
    (a, *_), (b, *_) = (interaction_dataloader(config, s) for s in ('train', 'val'))
    assert torch.equal(a['inputs'][0], b['inputs'][0])


def test_wrappers_that_repeat_images_are_left_out_and_joined_datasets_stay(config):
    leaf = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=3,
        dataset=dict(type='ConcatDataset', datasets=[leaf, copy.deepcopy(leaf)]),
    )
    assert ids(interaction_dataloader(config, 'train')) == [1, 2, 3, 4, 1, 2, 3, 4]
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=leaf)
    assert ids(interaction_dataloader(config, 'train')) == [1, 2, 3, 4]


def test_a_config_without_masks_loads_only_boxes(config):
    drop_annotations(config, image_id=0, keys=('segmentation',))
    for name in ('train_dataloader', 'val_dataloader'):
        for transform in config[name].dataset.pipeline:
            transform.pop('with_mask', None)
    sample = next(iter(interaction_dataloader(config)))['data_samples'][0]
    assert 'masks' not in sample.gt_instances
    assert len(sample.gt_instances.bboxes) == 2


def test_the_config_is_not_changed(config):
    before = config.to_dict()
    interaction_dataloader(config, 'train')
    assert config.to_dict() == before


def test_what_cannot_be_is_refused(config):
    with pytest.raises(ValueError, match="split='test' is not known"):
        interaction_dataloader(config, 'test')
    with pytest.raises(ValueError, match='max_images=0'):
        interaction_dataloader(config, max_images=0)
    config.train_dataloader = None
    with pytest.raises(ValueError, match='has no train_dataloader'):
        interaction_dataloader(config, 'train')
    config.val_dataloader.dataset.pipeline.pop(0)
    with pytest.raises(ValueError, match='loads no image'):
        interaction_dataloader(config)
