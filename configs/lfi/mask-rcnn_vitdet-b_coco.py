# The twin without LFI: ViTDet-B, MAE weights, large-scale jitter, 100 epochs; heads as
# in mmdet. For 64 images a step
_base_ = [
    '../_base_/models/mask-rcnn_vit-s_fpn.py',
    'mmdet::common/lsj-100e_coco-instance.py',
]

custom_imports = dict(imports=['lfi_mmdet'], allow_failed_imports=False)
image_size = (1024, 1024)
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchFixedSizePad', size=image_size, pad_mask=True)],
    ),
    backbone=dict(
        arch='deit-base',
        pretrain_img_size=1024,
        use_rel_pos=True,
        init_cfg=dict(
            checkpoint='https://dl.fbaipublicfiles.com/mae/pretrain/'
            'mae_pretrain_vit_base.pth'
        ),
    ),
    neck=dict(in_channels=768),
    rpn_head=dict(num_convs=2),
)
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=image_size, keep_ratio=True),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(batch_size=4, persistent_workers=False)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.7, num_layers=12),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)
default_hooks = dict(
    dataset_check=dict(type='DatasetCheckHook'),
    class_names=dict(type='ClassNamesHook'),
    iteration_seed=dict(type='IterationSeedHook'),
)
