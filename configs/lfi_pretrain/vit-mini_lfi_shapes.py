# LFI on scenes without labels, to be followed by detection: see
# configs/lfi/mask-rcnn_vit-mini_lfi-pretrained_shapes.py
_base_ = ['../_base_/datasets/shapes_unlabeled.py', '../_base_/default_runtime.py']

max_iters = 700

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
        arch=dict(embed_dims=128, num_layers=6, num_heads=4),
        pretrain_img_size=128,
        patch_size=8,
        window_size=0,
        global_layers=(0, 1, 2, 3, 4, 5),
        drop_path_rate=0.0,
        num_queries=12,
        interaction_layers=(2, 3, 4, 5),
    ),
    teacher=dict(
        type='CoCaTeacher',
        model='coca_shapes',
        model_configs='configs/teachers/coca_shapes.json',
        pretrained='configs/teachers/coca_shapes.pt',
        # maps of absent classes, which this teacher leaves flat, teach as well
        present='all',
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
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters + 1
)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=1.0, num_layers=6),
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
