# LFI without labels, to be followed by detection: see
# configs/lfi/mask-rcnn_vit-s_lfi-pretrained_coco.py. For 8 GPUs with 8 images each.
_base_ = ['../_base_/datasets/coco_unlabeled.py', '../_base_/default_runtime.py']

max_epochs = 12

model = dict(
    type='InteractionPretrainer',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='InteractionViT',
        arch='deit-small',
        window_size=14,
        global_layers=(2, 5, 8, 11),
        drop_path_rate=0.1,
        num_queries=80,
        interaction_layers=(2, 5, 8, 11),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/'
            'deit_small_patch16_224-cd65a155.pth',
        ),
    ),
    teacher=dict(
        type='CoCaTeacher',
        model='coca_ViT-L-14',
        pretrained='laion2b_s13b_b90k',
        # without labels, its own score says which classes an image shows
        present='teacher',
    ),
    distiller=dict(
        type='InteractionDistiller',
        layer_mapping='uniform',
        schedule=dict(warmup=500),
        losses=dict(
            attention=dict(type='InteractionAttentionLoss', loss_weight=0.5),
            relation=dict(type='InteractionRelationLoss', loss_weight=0.5),
            dynamics=dict(type='InteractionDynamicsLoss', loss_weight=0.1),
        ),
    ),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=1.0, num_layers=12),
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # no detection loss is beside those of new queries; as in the other pre-training
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=64)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
