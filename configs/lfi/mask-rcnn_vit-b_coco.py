# The twin without LFI
_base_ = './mask-rcnn_vit-s_coco.py'

model = dict(
    backbone=dict(
        arch='deit-base',
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/deit/'
            'deit_base_patch16_224-b5f2ef4d.pth'
        ),
    ),
    neck=dict(in_channels=768),
)
