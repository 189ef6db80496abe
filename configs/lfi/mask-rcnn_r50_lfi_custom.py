# A dataset of your own in COCO's format: set the folder, its files and the classes
_base_ = './mask-rcnn_r50_lfi_coco.py'

data_root = 'data/mine/'
train, val = 'annotations/train.json', 'annotations/val.json'
images = dict(train='train/', val='val/')
classes = ('scratch', 'dent')

num_classes = len(classes)
model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=num_classes),
        mask_head=dict(num_classes=num_classes),
    ),
)
metainfo = dict(classes=classes)
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=train,
        data_prefix=dict(img=images['train']),
        metainfo=metainfo,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=val,
        data_prefix=dict(img=images['val']),
        metainfo=metainfo,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val)
test_evaluator = val_evaluator
