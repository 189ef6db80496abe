# Starts from LFI on scenes without labels, and keeps the teacher beside the labels:
#   python tools/train.py configs/lfi_pretrain/vit-mini_lfi_shapes.py
_base_ = './mask-rcnn_vit-mini_lfi-coca_shapes.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/vit-mini_lfi_shapes/iter_700.pth',
        ),
    ),
)
