# Generated scenes without labels: python tools/make_shapes.py data/shapes
dataset_type = 'ShapesDataset'
data_root = 'data/shapes/'
image_size = (128, 128)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='LoadCaptions', ann_file=data_root + 'annotations/captions_unlabeled.json'
    ),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'captions'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/image_info_unlabeled.json',
        data_prefix=dict(img='unlabeled/'),
        pipeline=train_pipeline,
    ),
)
# nothing is detected, so there is nothing to evaluate
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
