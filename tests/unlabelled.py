"""A teacher that needs no labels, and tiny runs on images without any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets
from tests.tiny import CLASSES, tiny_config_text, write_tiny_coco


@MODELS.register_module()
class TinyConvTeacher(FrozenTeacher):
    """Two layers of maps by one convolution; with weights to look after."""

    PRESENT = ('ground_truth', 'all')
    num_layers = 2
    feature_dims = 4
    grid_size = (4, 4)

    def __init__(
        self, present: str = 'ground_truth', class_names: Sequence[str] | None = None
    ) -> None:
        super().__init__(view=dict(size=16), present=present)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.freeze(nn.Sequential(nn.Conv2d(3, 6, 4, 4)))
        self.token_dims = dict(tower=5, joint=5)
        self.seen: list[Tensor] = []
        if class_names is not None:
            self.set_class_names(class_names)

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Class k is the k-th channel."""

    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """Maps (B, 2, 3, 4, 4) by one convolution."""
        assert present is not None and self.network is not None
        self.seen.append(images)
        maps = self.network(images).unflatten(1, (2, 3)).flatten(3).softmax(-1)
        tokens = images[:, :1, :4, :20].reshape(-1, 1, 4, 4, 4).tile(2)[..., :5]
        return InteractionTargets(
            maps=maps.unflatten(3, (4, 4)),
            present=present,
            features=maps[..., :4].contiguous(),
            tokens=tokens if self.wants_tokens else None,
        )


def write_unlabelled(
    root: Path, num_images: int = 4, categories: bool = True, **kwargs: int
) -> Path:
    """Write images as :func:`write_tiny_coco` does, and list them without labels.

    Args:
        root: Folder.
        num_images: Number of images.
        categories: Whether the classes are listed. Without them the file has what
            COCO's ``image_info_unlabeled2017.json`` is sure to have.
        **kwargs: For :func:`write_tiny_coco`.

    Returns:
        ``unlabelled.json``.
    """
    path = write_tiny_coco(root, num_images, split='unlabelled', **kwargs)
    content = json.loads(path.read_text())
    for image in content['images']:
        image['id'] += 100  # no id of a labelled image
    del content['annotations']
    if not categories:
        del content['categories']
        content['info'] = dict(description='COCO 2017 Dataset', version='1.0')
        content['licenses'] = [dict(id=4, name='Attribution License', url='')]
        for image in content['images']:
            image.update(license=4, coco_url='', date_captured='', flickr_url='')
    path.write_text(json.dumps(content))
    return path


PRETRAIN = """
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
model = dict(
    _delete_=True, type='InteractionPretrainer',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
        pad_size_divisor=16),
    backbone=model['backbone'], teacher=dict(type='TinyConvTeacher', present='all'),
    distiller=model['distiller'])
model['backbone'].pop('_delete_')
train_pipeline.pop(1)
train_dataloader['dataset'].pop('filter_cfg')
"""
MIXED = """
branches = ['sup', 'unsup']
model['teacher'] = dict(type='TinyConvTeacher', present='all')
model['data_preprocessor'] = dict(
    _delete_=True, type='MultiBranchDataPreprocessor',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
        pad_mask=True, pad_size_divisor=16))
pack = train_pipeline.pop()
unsup_pipeline = [train_pipeline[0], *train_pipeline[2:],
    dict(type='MultiBranch', branch_field=branches, unsup=pack)]
train_pipeline = [*train_pipeline,
    dict(type='MultiBranch', branch_field=branches, sup=pack)]
sup = dict(train_dataloader['dataset'], pipeline=train_pipeline)
unsup = dict(sup, ann_file='unlabelled.json', data_prefix=dict(img='unlabelled/'),
             pipeline=unsup_pipeline, filter_cfg=None)
train_dataloader.update(
    batch_size=4,
    sampler=dict(type='SeededGroupMultiSourceSampler', batch_size=4,
                 source_ratio=[2, 2]),
    dataset=dict(type='ConcatDataset', datasets=[sup, unsup]))
"""


def write_pretraining(root: Path, extra: str = '', **kwargs: object) -> Path:
    """Write images without labels, and a config of a pre-training on them.

    Args:
        root: Folder, e.g. pytest's ``tmp_path``.
        extra: Python code to append to the config.
        **kwargs: For :func:`tiny_config_text`.
    """
    write_unlabelled(root)
    config = root / 'pretrain.py'
    text = tiny_config_text(root, CLASSES, train='unlabelled', **kwargs)  # type: ignore[arg-type]
    config.write_text(text + PRETRAIN + extra)
    return config


def write_mixed(root: Path, extra: str = '', **kwargs: object) -> Path:
    """Write images with and without labels, and a config that mixes them."""
    write_tiny_coco(root)
    write_unlabelled(root)
    config = root / 'mixed.py'
    text = tiny_config_text(root, CLASSES, **kwargs)  # type: ignore[arg-type]
    config.write_text(text + MIXED + extra)
    return config
