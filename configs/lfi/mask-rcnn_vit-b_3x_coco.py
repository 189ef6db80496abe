# The twin without LFI, 36 epochs and multi-scale training
_base_ = './mask-rcnn_vit-b_coco.py'

train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
    *_base_.train_pipeline[3:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=36)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(
        type='MultiStepLR',
        begin=0,
        end=36,
        by_epoch=True,
        milestones=[27, 33],
        gamma=0.1,
    ),
]
