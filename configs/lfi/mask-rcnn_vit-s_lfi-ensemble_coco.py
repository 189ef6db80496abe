# Two teachers: where words look in CoCa's decoder, and what CLIP finds alike
_base_ = './mask-rcnn_vit-s_lfi_coco.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='EnsembleTeacher',
        teachers=[
            dict(
                type='CoCaTeacher',
                model='coca_ViT-L-14',
                pretrained='laion2b_s13b_b90k',
            ),
            dict(
                type='CLIPTeacher',
                model='ViT-B-16',
                pretrained='openai',
                template=['a photo of a {}.', 'a photo of the {}.'],
            ),
        ],
        weights=[2.0, 1.0],
    ),
)
