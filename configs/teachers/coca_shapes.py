# A small CoCa that learns from the captions of generated scenes, and from nothing else
_base_ = ['../_base_/default_runtime.py']

max_iters = 6000
batch_size = 64
nouns = (
    'circle', 'square', 'triangle', 'star', 'rectangle', 'ellipse',
    'pentagon', 'hexagon', 'diamond', 'trapezoid', 'crescent', 'arrow',
)  # fmt: skip

model = dict(
    type='CaptionPretrainer',
    model='coca_shapes',
    model_configs='configs/teachers/coca_shapes.json',
    nouns=nouns,
    template=('a photo of a {}.', 'a {}.', 'there is a {}.'),
    layers=(1, 2, 3, 4),
    noun_weight=12.0,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    # every scene is new: their order need not be
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CaptionScenes',
        length=max_iters * batch_size,
        size=64,
        classes=nouns,
        max_objects=4,
        min_size=0.2,
        typical_colours=0.9,
    ),
)
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters + 1
)
val_cfg = None
test_cfg = None
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0,
        bias_decay_mult=0,
        # it has to move by whole units
        custom_keys=dict(logit=dict(lr_mult=10, decay_mult=0)),
    ),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=300, end=max_iters),
]
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(by_epoch=False, interval=250, max_keep_ckpts=1),
)
custom_hooks = []
log_processor = dict(by_epoch=False)
