# Needs neither downloads nor a GPU: the teacher reads the masks (diagnosis only).
# For distillation proper give it the teacher of mask-rcnn_vit-s_lfi_coco.py.
_base_ = './mask-rcnn_vit-t_coco-mini.py'

model = dict(
    type='LFIMaskRCNN',
    backbone=dict(num_queries=80, interaction_layers=(2, 5, 8, 11)),
    teacher=dict(type='GroundTruthTeacher', grid_size=40),
    distiller=dict(
        type='InteractionDistiller',
        schedule=dict(warmup=50),
        losses=dict(
            attention=dict(type='InteractionAttentionLoss', loss_weight=0.5),
            dynamics=dict(type='InteractionDynamicsLoss', loss_weight=0.1),
        ),
    ),
)
