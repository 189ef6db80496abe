# Starts from LFI on scenes without labels, and then learns from labels alone:
#   python tools/train.py configs/lfi_pretrain/vit-mini_lfi_shapes.py
_base_ = './mask-rcnn_vit-mini_shapes.py'

model = dict(
    type='LFIMaskRCNN',
    backbone=dict(
        num_queries=12,
        interaction_layers=(2, 3, 4, 5),
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/vit-mini_lfi_shapes/iter_700.pth',
        ),
    ),
)
