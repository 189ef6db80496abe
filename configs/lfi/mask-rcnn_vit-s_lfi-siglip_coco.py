# The tokenizer is downloaded as well, and needs transformers: the extra [siglip]
_base_ = './mask-rcnn_vit-s_lfi-clip_coco.py'

model = dict(
    teacher=dict(
        type='SigLIPTeacher',
        model='ViT-B-16-SigLIP',
        pretrained='webli',
        # the scale of its training would leave next to nothing but one patch
        temperature=0.07,
    ),
)
