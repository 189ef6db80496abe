# Starts from LFI without labels, and then learns from labels alone:
#   tools/dist_train.sh configs/lfi_pretrain/vit-s_lfi_coco.py 8
_base_ = './mask-rcnn_vit-s_coco.py'

model = dict(
    type='LFIMaskRCNN',
    backbone=dict(
        num_queries=80,
        interaction_layers=(2, 5, 8, 11),
        init_cfg=dict(checkpoint='work_dirs/vit-s_lfi_coco/epoch_12.pth'),
    ),
)
