# Starts from LFI on scenes without labels, and keeps the teacher beside the labels.
# Slower steps in deeper layers keep what was learned before:
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
    teacher=dict(present='all'),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.75))
