# Memorise 16 photos of five classes: does the whole detection path work? First
#   python tools/make_subset.py $DATA_ROOT/annotations/instances_train2017.json \
#       data/coco_mini_16.json --classes dog cat bus train pizza --images 16
_base_ = './mask-rcnn_vit-t_lfi_coco-mini.py'

ann_file = '{{$SUBSET:data/coco_mini_16.json}}'
data_root = '{{$DATA_ROOT:data/coco_mini}}'
classes = ('bus', 'train', 'cat', 'dog', 'pizza')  # in the order of COCO's ids
image_size = (320, 320)
max_iters = 600

fpn_channels = 64  # light heads: 16 photos are no reason to wait

model = dict(
    backbone=dict(num_queries=5, drop_path_rate=0.0, pretrain_img_size=320),
    neck=dict(out_channels=fpn_channels),
    rpn_head=dict(in_channels=fpn_channels, feat_channels=fpn_channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=fpn_channels),
        bbox_head=dict(in_channels=fpn_channels, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=dict(out_channels=fpn_channels),
        mask_head=dict(
            num_convs=2,
            in_channels=fpn_channels,
            conv_out_channels=fpn_channels,
            num_classes=5,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(
    data_root='',
    ann_file=ann_file,
    data_prefix=dict(img=data_root + '/train2017'),
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    batch_size=4,
    batch_sampler=None,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    num_workers=1,
    dataset=dict(pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=ann_file)
test_evaluator = val_evaluator

train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=max_iters // 3,
)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(lr=3e-4), clip_grad=dict(max_norm=1.0)
)
auto_scale_lr = dict(base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=max_iters),
)
log_processor = dict(by_epoch=False)
