# Eight labelled scenes and eight without labels in every batch; the latter feel the
# teacher only. The labelled ones come in the order of the other configs.
_base_ = './mask-rcnn_vit-mini_lfi-coca_shapes.py'

branches = ['sup', 'unsup']
labelled, unlabelled = 8, 8
captions = _base_.data_root + 'annotations/captions_{}.json'
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'captions')

model = dict(
    data_preprocessor=dict(
        _delete_=True,
        type='MultiBranchDataPreprocessor',
        data_preprocessor=_base_.model.data_preprocessor,
    ),
    # without labels, captions say which classes an image shows
    teacher=dict(present='captions'),
    sup_labels=True,
    unsup_weight=1.0,
)
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
train_pipeline = [
    *_base_.train_pipeline[:-1],
    # there are captions of more images where only some of them are labelled
    dict(type='LoadCaptions', ann_file=captions.format('train'), foreign='ignore'),
    dict(type='MultiBranch', branch_field=branches, sup=pack),
]
unsup_pipeline = [
    _base_.train_pipeline[0],
    *_base_.train_pipeline[2:-1],  # no LoadAnnotations
    dict(type='LoadCaptions', ann_file=captions.format('unlabeled')),
    dict(type='MultiBranch', branch_field=branches, unsup=pack),
]
train_dataloader = dict(
    batch_size=labelled + unlabelled,
    sampler=dict(
        _delete_=True,
        type='MultiSourceSampler',
        batch_size=labelled + unlabelled,
        source_ratio=[labelled, unlabelled],
    ),
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type=_base_.dataset_type,
                data_root=_base_.data_root,
                ann_file='annotations/instances_train.json',
                data_prefix=dict(img='train/'),
                filter_cfg=dict(filter_empty_gt=True, min_size=4),
                pipeline=train_pipeline,
            ),
            dict(
                type=_base_.dataset_type,
                data_root=_base_.data_root,
                ann_file='annotations/image_info_unlabeled.json',
                data_prefix=dict(img='unlabeled/'),
                pipeline=unsup_pipeline,
            ),
        ],
    ),
)
auto_scale_lr = dict(base_batch_size=16)  # half of them labelled
