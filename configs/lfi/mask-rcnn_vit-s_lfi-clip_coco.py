_base_ = './mask-rcnn_vit-s_lfi_coco.py'

model = dict(
    teacher=dict(
        _delete_=True, type='CLIPTeacher', model='ViT-B-16', pretrained='openai'
    ),
    # one layer of maps: nothing develops that could be compared
    distiller=dict(losses=dict(dynamics=None)),
)
