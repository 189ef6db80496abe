_base_ = './mask-rcnn_vit-b_lfi_3x_coco.py'

model = dict(
    teacher=dict(
        _delete_=True, type='CLIPTeacher', model='ViT-B-16', pretrained='openai'
    )
)
