# The twin without LFI
_base_ = './mask-rcnn_vit-s_coco.py'

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
