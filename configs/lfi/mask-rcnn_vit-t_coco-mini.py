# The COCO recipe with a ViT-T on a few hundred real photos
_base_ = [
    '../_base_/models/mask-rcnn_vit-s_fpn.py',
    '../_base_/datasets/coco-mini_instance.py',
    '../_base_/schedules/vit_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    # from scratch, so that it runs offline; --cfg-options can name DeiT's weights
    backbone=dict(arch='deit-tiny', init_cfg=None),
    neck=dict(in_channels=192),
)
