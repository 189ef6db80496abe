# The COCO recipe with a ViT-T on a few hundred real photos
_base_ = [
    '../_base_/models/mask-rcnn_vit-s_fpn.py',
    '../_base_/datasets/coco-mini_instance.py',
    '../_base_/schedules/vit_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch='deit-tiny',
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/deit/'
            'deit_tiny_patch16_224-a1311bcf.pth'
        ),
    ),
    neck=dict(in_channels=192),
)
