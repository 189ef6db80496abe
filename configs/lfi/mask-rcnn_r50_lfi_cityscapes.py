# Cityscapes instance segmentation with LFI; its twin is the config of mmdet
_base_ = 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py'

custom_imports = dict(imports=['lfi_mmdet'])
default_hooks = dict(
    dataset_check=dict(type='DatasetCheckHook'),
    class_names=dict(type='ClassNamesHook'),
)
model = dict(
    type='LFIMaskRCNN',
    interaction=dict(),
    teacher=dict(
        type='CoCaTeacher',
        model='coca_ViT-L-14',
        pretrained='laion2b_s13b_b90k',
        # pictures twice as wide as high
        teacher_view='tiles',
        tiles=(1, 2),
    ),
)
