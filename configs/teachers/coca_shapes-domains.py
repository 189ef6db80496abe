# Goes on with pictures of all styles, for the study of domain shift
_base_ = './coca_shapes.py'

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
        split='captions-domains',
        domains=('photo', 'flat', 'line', 'inverted', 'noisy'),
    )
)
