# The teacher reads the masks: an upper bound for maps of these photos, and says nothing
# about distillation from a vision-language model
_base_ = './mask-rcnn_vit-mini_coco-mini.py'

model = dict(
    type='LFIMaskRCNN',
    backbone=dict(num_queries=11, interaction_layers=(2, 3, 4, 5)),
    teacher=dict(type='GroundTruthTeacher', grid_size=32, blur=(3.0, 2.0, 1.0, 0.5)),
    distiller=dict(
        type='InteractionDistiller',
        layer_mapping='one_to_one',
        schedule=dict(warmup=50),
        losses=dict(
            attention=dict(type='InteractionAttentionLoss', loss_weight=2.0),
            dynamics=dict(type='InteractionDynamicsLoss', loss_weight=0.1),
        ),
    ),
)
