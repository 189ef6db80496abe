"""Our configs of mmdet's detectors, made small, and a batch for them."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector, RTMDet
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData

CONFIGS = Path(__file__).parents[1] / 'configs' / 'lfi'
#: Config of each detector, and what makes it small besides the backbone
DETECTORS = {
    'mask-rcnn_r50': {},
    'cascade-mask-rcnn_r50': {},
    'faster-rcnn_r50': {},
    'retinanet_r50': {},
    'fcos_r50': {},
    'rtmdet-ins_s': {},
    'dino_r50': dict(
        num_queries=20,
        encoder=dict(num_layers=1),
        decoder=dict(num_layers=2),
        test_cfg=dict(max_per_img=10),
        dn_cfg=dict(group_cfg=dict(num_dn_queries=10)),
    ),
    'mask2former_r50': dict(
        data_preprocessor=dict(batch_augments=None),  # pads to 1024 pixels
        panoptic_head=dict(
            num_queries=10,
            num_transformer_feat_level=3,
            pixel_decoder=dict(encoder=dict(num_layers=1)),
            transformer_decoder=dict(num_layers=2),
        ),
        train_cfg=dict(num_points=100),
        test_cfg=dict(max_per_image=5),
    ),
    'solov2_r50': {},
}
CLASSES = ('cat', 'dog', 'bird')
CHANNELS = (8, 16, 32, 64)


def set_classes(part, count):
    """Change the number of classes wherever it is said."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ('num_classes', 'num_things_classes') and isinstance(value, int):
                part[key] = count
            elif key == 'class_weight' and isinstance(value, list):
                part[key] = [1.0] * count + [0.1]
            else:
                set_classes(value, count)
    elif isinstance(part, (list, tuple)):
        for value in part:
            set_classes(value, count)


@cache
def text_of(name: str) -> str:
    """A config of ours as text, its bases written out."""
    return Config.fromfile(CONFIGS / f'{name}_lfi_coco.py').pretty_text


def narrow(part):
    """Make whatever is 256 or 1024 channels wide 32 channels wide."""
    if isinstance(part, dict):
        for key, value in part.items():
            wide = isinstance(value, int) and value in (256, 512, 1024)
            if wide and ('channels' in key or key in ('embed_dims', 'num_feats')):
                part[key] = 32
            else:
                narrow(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            narrow(value)


def small_cfg(name: str) -> Config:
    cfg = Config.fromstring(text_of(name), '.py')
    cfg.merge_from_dict(dict(model=DETECTORS[name]))
    model = cfg.model
    model.teacher = dict(type='GroundTruthTeacher', grid_size=8)
    model.interaction.update(embed_dims=16, interaction_heads=2)
    set_classes(model, len(CLASSES))
    if name == 'rtmdet-ins_s':
        model.backbone.update(deepen_factor=0.1, widen_factor=0.125, init_cfg=None)
        model.neck.update(in_channels=[32, 64, 128], out_channels=16, num_csp_blocks=1)
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
        return cfg
    if name not in ('dino_r50', 'mask2former_r50'):
        for part in ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head'):
            narrow(model.get(part))
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    if 'panoptic_head' in model:
        model.panoptic_head.in_channels = list(CHANNELS)
    elif name == 'dino_r50':
        model.neck.in_channels = list(CHANNELS[1:])
    else:
        model.neck.in_channels = list(CHANNELS)
    return cfg


def build(cfg: Config) -> BaseDetector:
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    if getattr(model, 'teacher', None) is not None:
        model.set_class_names(CLASSES)
    return model


def batch(same_size: bool) -> dict:
    """Two raw images with one object each."""
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    sizes = [(128, 128)] * 2 if same_size else [(128, 96), (100, 128)]
    for i, (h, w) in enumerate(sizes):
        pixels = torch.randint(0, 255, (3, h, w), generator=generator)
        mask = np.zeros((1, h, w), np.uint8)
        mask[0, 16:64, 16:80] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(h, w), ori_shape=(h, w), img_id=i, scale_factor=(1.0, 1.0),
                batch_input_shape=(128, 128),
            )
        )  # fmt: skip
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[16.0, 16.0, 80.0, 64.0]]),
            labels=torch.tensor([i]),
            masks=BitmapMasks(mask, h, w),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        inputs.append(pixels.to(torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def batch_for(model) -> dict:
    # RTMDet takes images of one size only
    return batch(same_size=isinstance(model, RTMDet))


def losses_of(model) -> dict:
    data = model.data_preprocessor(batch_for(model), training=True)
    return model.loss(data['inputs'], data['data_samples'])


def total(losses) -> torch.Tensor:
    return sum(
        value
        for key, values in losses.items()
        if 'loss' in key
        for value in (values if isinstance(values, (list, tuple)) else [values])
    )


def predict(model) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch_for(model), training=False)
        samples = model.predict(data['inputs'], data['data_samples'])
    return [sample.pred_instances.scores for sample in samples]
