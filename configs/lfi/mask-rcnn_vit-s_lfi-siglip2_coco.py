_base_ = './mask-rcnn_vit-s_lfi-siglip_coco.py'

model = dict(teacher=dict(model='ViT-B-16-SigLIP2'))
