# LVIS v1 with LFI; its twin is the config of mmdet. Of 1,203 classes an image shows a
# dozen: a hundred queries are matched to those, and the teacher is asked for no others
_base_ = 'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py'

custom_imports = dict(imports=['lfi_mmdet'])
default_hooks = dict(
    dataset_check=dict(type='DatasetCheckHook'),
    class_names=dict(type='ClassNamesHook'),
)
model = dict(
    type='LFIMaskRCNN',
    interaction=dict(num_queries=100),
    teacher=dict(
        type='CoCaTeacher', model='coca_ViT-L-14', pretrained='laion2b_s13b_b90k'
    ),
    distiller=dict(
        type='InteractionDistiller',
        assignment=dict(type='HungarianAssignment', num_tied=0),
        schedule=dict(warmup=500),
        losses=dict(
            attention=dict(type='InteractionAttentionLoss', loss_weight=0.5),
            relation=dict(type='InteractionRelationLoss', loss_weight=0.5),
            dynamics=dict(type='InteractionDynamicsLoss', loss_weight=0.1),
        ),
    ),
)
