_base_ = './mask-rcnn_vit-t_3x_coco.py'

model = dict(
    type='LFIMaskRCNN',
    backbone=dict(num_queries=80, interaction_layers=(2, 5, 8, 11)),
    teacher=dict(
        type='CoCaTeacher', model='coca_ViT-L-14', pretrained='laion2b_s13b_b90k'
    ),
)
