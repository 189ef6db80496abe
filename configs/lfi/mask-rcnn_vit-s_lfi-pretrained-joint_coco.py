# Starts from LFI without labels, and keeps the teacher beside the labels
_base_ = './mask-rcnn_vit-s_lfi_coco.py'

model = dict(
    backbone=dict(init_cfg=dict(checkpoint='work_dirs/vit-s_lfi_coco/epoch_12.pth'))
)
