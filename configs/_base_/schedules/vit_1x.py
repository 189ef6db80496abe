# 12 epochs of AdamW, for 8 GPUs with 2 images each
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=1.0, num_layers=12),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
