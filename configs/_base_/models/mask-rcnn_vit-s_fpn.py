# Mask R-CNN on a plain ViT-S with the simple pyramid of ViTDet; heads as in mmdet
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='InteractionViT',
        arch='deit-small',
        window_size=14,
        global_layers=(2, 5, 8, 11),
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/'
            'deit_small_patch16_224-cd65a155.pth',
        ),
    ),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=384, num_outs=5),
)
