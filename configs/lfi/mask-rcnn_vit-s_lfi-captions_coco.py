# The words of COCO's captions as texts: 80 queries for the classes that captions name,
# and 20 for words that name no class, matched to queries by where they look
_base_ = './mask-rcnn_vit-s_lfi_coco.py'

model = dict(
    backbone=dict(num_queries=100),
    teacher=dict(texts='captions', synonyms='coco', max_free=20),
    distiller=dict(assignment=dict(type='HungarianAssignment', num_tied=80)),
)
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(
        type='LoadCaptions',
        ann_file=_base_.data_root + 'annotations/captions_train2017.json',
    ),
    dict(
        type='PackDetInputs',
        meta_keys=(
            # the defaults, and
            *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            *('flip', 'flip_direction'),
            'captions',
        ),
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
