_base_ = './mask-rcnn_vit-s_coco.py'

model = dict(
    type='LFIMaskRCNN',
    backbone=dict(num_queries=80, interaction_layers=(2, 5, 8, 11)),
    teacher=dict(
        type='CoCaTeacher', model='coca_ViT-L-14', pretrained='laion2b_s13b_b90k'
    ),
    distiller=dict(
        type='InteractionDistiller',
        layer_mapping='uniform',
        schedule=dict(warmup=500),
        losses=dict(
            attention=dict(type='InteractionAttentionLoss', loss_weight=0.5),
            relation=dict(type='InteractionRelationLoss', loss_weight=0.5),
            dynamics=dict(type='InteractionDynamicsLoss', loss_weight=0.1),
            feature=None,  # or dict(type='InteractionFeatureLoss', loss_weight=0.5)
        ),
    ),
)
