# A CoCa that has read captions of such scenes, and seen no box, mask or label
_base_ = './mask-rcnn_vit-mini_shapes.py'

model = dict(
    type='LFIMaskRCNN',
    backbone=dict(num_queries=12, interaction_layers=(2, 3, 4, 5)),
    teacher=dict(
        type='CoCaTeacher',
        model='coca_shapes',
        model_configs='configs/teachers/coca_shapes.json',
        pretrained='configs/teachers/coca_shapes.pt',
        reading='similarity',
        layers=(1, 2, 3, 4),
        temperature=0.1,
        template=('a photo of a {}.', 'a {}.', 'there is a {}.'),
    ),
    distiller=dict(
        type='InteractionDistiller',
        layer_mapping='one_to_one',
        schedule=dict(warmup=50),
        losses=dict(
            attention=dict(type='InteractionAttentionLoss', loss_weight=2.0),
            relation=dict(type='InteractionRelationLoss', loss_weight=0.5),
            dynamics=dict(type='InteractionDynamicsLoss', loss_weight=0.1),
        ),
    ),
)
