# Mask2Former with LFI; its twin is the config of mmdet
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

custom_imports = dict(imports=['lfi_mmdet'])
default_hooks = dict(
    dataset_check=dict(type='DatasetCheckHook'),
    class_names=dict(type='ClassNamesHook'),
)
model = dict(
    type='LFIMask2Former',
    interaction=dict(),
    teacher=dict(
        type='CoCaTeacher', model='coca_ViT-L-14', pretrained='laion2b_s13b_b90k'
    ),
)
