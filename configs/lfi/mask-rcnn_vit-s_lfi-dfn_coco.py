_base_ = './mask-rcnn_vit-s_lfi-clip_coco.py'

model = dict(teacher=dict(model='ViT-B-16-quickgelu', pretrained='dfn2b'))
