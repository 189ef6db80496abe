# Goes on with pictures of all styles, for the study of domain shift
_base_ = './coca_shapes.py'

max_iters = 2500
batch_size = 64

model = dict(
    pretrained='configs/teachers/coca_shapes.pt',
    template=(
        'a photo of a {}.',
        'a {}.',
        'there is a {}.',
        'a drawing of a {}.',
        'a picture of a {}.',
    ),
)
train_dataloader = dict(
    dataset=dict(
        length=max_iters * batch_size,
        split='captions-domains',
        domains=('photo', 'flat', 'line', 'inverted', 'noisy'),
    )
)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters + 1)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters),
]
