# The twin without LFI; see README.md for the published numbers of this recipe
_base_ = [
    '../_base_/models/mask-rcnn_vit-s_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/vit_1x.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(persistent_workers=False)
