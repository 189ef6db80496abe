_base_ = './mask-rcnn_vit-s_lfi-clip_coco.py'

model = dict(teacher=dict(model='EVA02-B-16', pretrained='merged2b_s8b_b131k'))
