_base_ = './mask-rcnn_vit-s_lfi_coco.py'

model = dict(
    teacher=dict(
        _delete_=True,
        type='BLIPTeacher',
        pretrained='https://download.openmmlab.com/mmclassification/v1/blip/'
        'blip-base_3rdparty_coco-retrieval_20230419-a1804d2c.pth',
    ),
)
