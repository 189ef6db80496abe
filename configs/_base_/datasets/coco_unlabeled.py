# COCO's photos without any label: train2017 and unlabeled2017 (241,690 images)
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
# the teacher sees 224 to 288 pixels, so a quarter of those of the detection will do
image_size = (667, 400)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type=dataset_type,
                data_root=data_root,
                # only the images and the names of the classes are read
                ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/'),
                pipeline=train_pipeline,
            ),
            dict(
                type='UnlabeledCocoDataset',  # the file need not have categories
                data_root=data_root,
                ann_file='annotations/image_info_unlabeled2017.json',
                data_prefix=dict(img='unlabeled2017/'),
                pipeline=train_pipeline,
            ),
        ],
    ),
)
# nothing is detected, so there is nothing to evaluate
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
