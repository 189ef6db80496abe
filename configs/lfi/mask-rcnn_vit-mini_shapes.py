# A small twin for the generated scenes, sized for minutes on a CPU
_base_ = [
    '../_base_/models/mask-rcnn_vit-s_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/vit_1x.py',
    '../_base_/default_runtime.py',
]

max_iters = 400
num_classes = 12
fpn_channels = 64

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=6, num_heads=4),
        pretrain_img_size=128,
        patch_size=8,
        window_size=0,
        global_layers=(0, 1, 2, 3, 4, 5),
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=128, out_channels=fpn_channels, scales=(2, 1, 0.5), num_outs=4
    ),
    rpn_head=dict(
        in_channels=fpn_channels,
        feat_channels=fpn_channels,
        # patches of 8 pixels put the pyramid at strides 4 to 32
        anchor_generator=dict(scales=[3], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=fpn_channels, featmap_strides=[4, 8, 16], finest_scale=28
        ),
        mask_roi_extractor=dict(
            out_channels=fpn_channels, featmap_strides=[4, 8, 16], finest_scale=28
        ),
        bbox_head=dict(
            in_channels=fpn_channels,
            fc_out_channels=256,
            num_classes=num_classes,
            # minutes are too few to learn twelve ways to move a box
            reg_class_agnostic=True,
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=fpn_channels,
            conv_out_channels=fpn_channels,
            num_classes=num_classes,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        # few boxes, half of them objects: classes are learned from the first steps
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(score_thr=0.01)),
)

train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=max_iters,
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(num_layers=6),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
