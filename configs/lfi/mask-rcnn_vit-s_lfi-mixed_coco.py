# Two labelled photos of train2017 and two of unlabeled2017 per GPU; those without
# labels feel the teacher only
_base_ = './mask-rcnn_vit-s_lfi_coco.py'

branches = ['sup', 'unsup']
labelled, unlabelled = 2, 2
# as many labelled images as in the 12 epochs of the other configs
epoch = 7330
max_iters = 12 * epoch

model = dict(
    data_preprocessor=dict(
        _delete_=True,
        type='MultiBranchDataPreprocessor',
        data_preprocessor=_base_.model.data_preprocessor,
    ),
    # without labels, its own score says which classes an image shows
    teacher=dict(present='teacher'),
    sup_labels=True,
    unsup_weight=1.0,
)
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='MultiBranch', branch_field=branches, sup=_base_.train_pipeline[-1]),
]
unsup_pipeline = [
    _base_.train_pipeline[0],
    *_base_.train_pipeline[2:-1],  # no LoadAnnotations
    dict(type='MultiBranch', branch_field=branches, unsup=_base_.train_pipeline[-1]),
]
train_dataloader = dict(
    batch_size=labelled + unlabelled,
    num_workers=4,
    sampler=dict(
        _delete_=True,
        type='SeededGroupMultiSourceSampler',
        batch_size=labelled + unlabelled,
        source_ratio=[labelled, unlabelled],
    ),
    batch_sampler=None,  # the sampler itself makes batches of images of like shape
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type=_base_.dataset_type,
                data_root=_base_.data_root,
                ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/'),
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline=train_pipeline,
            ),
            dict(
                type='UnlabeledCocoDataset',  # the file need not have categories
                data_root=_base_.data_root,
                ann_file='annotations/image_info_unlabeled2017.json',
                data_prefix=dict(img='unlabeled2017/'),
                pipeline=unsup_pipeline,
            ),
        ],
    ),
)
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=epoch
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[8 * epoch, 11 * epoch],
        gamma=0.1,
    ),
]
auto_scale_lr = dict(base_batch_size=32)  # half of them labelled
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=epoch))
log_processor = dict(by_epoch=False)
