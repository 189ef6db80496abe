"""Data and a detector that train in a second, for tests of whole runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('red', 'green', 'blue')
_COLOURS = ((220, 40, 40), (40, 200, 40), (40, 60, 220))


def write_tiny_coco(
    root: Path,
    num_images: int = 4,
    size: int = 64,
    classes: Sequence[str] = CLASSES,
    split: str = 'train',
) -> Path:
    """Write rectangles of one colour per class in COCO format.

    Args:
        root: Folder that receives ``<split>.json`` and ``<split>/0.png`` and so on.
        num_images: Number of images; image i shows classes i and i + 1.
        size: Side of the images in pixels.
        classes: Names; category ids start at 1.
        split: Name of the annotation file and of the image folder.

    Returns:
        The annotation file.
    """
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(num_images):
        pixels = np.full((size, size, 3), 90, np.uint8)
        for k in (i % len(classes), (i + 1) % len(classes)):
            w, h = random.integers(size // 3, size // 2, 2).tolist()
            x, y = (int(random.integers(0, size - side)) for side in (w, h))
            pixels[y : y + h, x : x + w] = _COLOURS[k % len(_COLOURS)]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=k + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
        Image.fromarray(pixels).save(folder / f'{i}.png')
        images.append(dict(id=i + 1, file_name=f'{i}.png', height=size, width=size))
    categories = [dict(id=k + 1, name=name) for k, name in enumerate(classes)]
    path = root / f'{split}.json'
    content = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(content))
    return path


def tiny_config_text(
    root: Path,
    classes: Sequence[str] = CLASSES,
    max_iters: int = 2,
    batch_size: int = 2,
    num_workers: int = 0,
    train: str = 'train',
    val: str = 'train',
    extra: str = '',
) -> str:
    """Make the text of a config: a very small Mask R-CNN with LFI on tiny data.

    Args:
        root: Folder of :func:`write_tiny_coco`.
        classes: Classes of all datasets and heads.
        max_iters: Iterations; a checkpoint is written after each of them.
        batch_size: Of the training.
        num_workers: Of all data loaders.
        train: Split to train on.
        val: Split to validate and test on.
        extra: Python code to append.
    """
    num_classes = len(classes)
    return f"""
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py',
          'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['lfi_mmdet'], allow_failed_imports=False)
randomness = dict(seed=0)
metainfo = dict(classes={tuple(classes)!r})

model = dict(
    type='LFIMaskRCNN',
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        _delete_=True, type='InteractionViT',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2),
        pretrain_img_size=64, window_size=0, global_layers=(0, 1), mlp_ratio=2.0,
        num_queries={num_classes}, interaction_layers=(0, 1)),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=32, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16,
                  anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(
            in_channels=16, fc_out_channels=32, num_classes={num_classes}),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16,
                       num_classes={num_classes})),
    teacher=dict(type='GroundTruthTeacher', grid_size=8, blur=(1.0, 0.5)),
    distiller=dict(type='InteractionDistiller',
                   losses=dict(attention=dict(type='InteractionAttentionLoss'))),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=10),
                   rcnn=dict(sampler=dict(num=8))),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=10), rcnn=dict(max_per_img=5)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    batch_size={batch_size}, num_workers={num_workers},
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root={str(root)!r}, ann_file='{train}.json',
        data_prefix=dict(img='{train}/'), metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers={num_workers},
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root={str(root)!r}, ann_file='{val}.json',
        data_prefix=dict(img='{val}/'), metainfo=metainfo, test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file={str(root / f'{val}.json')!r},
    metric=['bbox', 'segm'])
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters={max_iters},
                 val_interval=10**6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(num_layers=2),
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=1),
    dataset_check=dict(type='DatasetCheckHook'),
    class_names=dict(type='ClassNamesHook'))
log_processor = dict(by_epoch=False)
{extra}
"""


def write_tiny_run(root: Path, **kwargs: object) -> Path:
    """Write data and config into ``root`` and return the config file.

    Args:
        root: Folder, e.g. pytest's ``tmp_path``.
        **kwargs: For :func:`tiny_config_text`.
    """
    write_tiny_coco(root)
    config = root / 'tiny.py'
    config.write_text(tiny_config_text(root, **kwargs))  # type: ignore[arg-type]
    return config
