# Cached targets on a few hundred photos, without downloads or a GPU (diagnosis only):
#   python tools/cache_teacher.py configs/lfi/mask-rcnn_vit-t_lfi-cached_coco-mini.py
_base_ = './mask-rcnn_vit-t_lfi_coco-mini.py'

store = 'data/targets/coco-mini_ground-truth'

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
