# The store is that of mask-rcnn_vit-s_lfi-cached_coco.py, whatever the student
_base_ = './mask-rcnn_vit-s_lfi_3x_coco.py'

store = 'data/targets/coco_coca_vit-l-14'

model = dict(
    teacher=dict(
        _delete_=True,
        type='CachedTeacher',
        store=store,
        teacher=_base_.model.teacher,
    ),
)
train_pipeline = [
    *_base_.train_pipeline[:-1],  # all but PackDetInputs
    dict(type='LoadCachedTargets', store=store),
    dict(type='PackInteractionInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
