"""The contracts of DESIGN section 4, on a detector with a teacher of two layers."""

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch import nn

from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets

CLASSES = ('cat', 'dog', 'bird')


class LinearTeacher(FrozenTeacher):
    """Maps are a linear function of pixels; small, but with weights to look after."""

    def __init__(self, present='ground_truth', class_names=CLASSES):
        super().__init__(view=dict(size=16), present=present)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.freeze(nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Dropout(0.5)))
        self.seen: list[torch.Tensor] = []
        if class_names is not None:
            self.set_class_names(class_names)

    num_layers = 2
    feature_dims = 4

    def encode_texts(self, class_names):
        self.encoded = tuple(class_names)

    def interact(self, images, present):
        self.seen.append(images)
        weight = next(self.network.parameters())
        maps = self.network(images.to(weight.dtype)).float().unflatten(1, (2, 3))
        maps = maps.flatten(3).softmax(-1).unflatten(3, (4, 4))
        features = maps.flatten(3)[..., :4].contiguous()
        return InteractionTargets(maps=maps, present=present, features=features)


@pytest.fixture(autouse=True)
def registered_teacher():
    MODELS.register_module(module=LinearTeacher)
    yield
    MODELS.module_dict.pop('LinearTeacher')


def detector_cfg(**changes) -> ConfigDict:
    """A Mask R-CNN of toy size for images of 64 pixels."""
    levels = dict(
        type='SingleRoIExtractor', out_channels=8, featmap_strides=[2, 4, 8, 16],
    )  # fmt: skip
    coder = dict(type='DeltaXYWHBBoxCoder')
    assigner = dict(
        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.3,
        match_low_quality=True, ignore_iof_thr=-1,
    )  # fmt: skip
    sampler = dict(
        type='RandomSampler', num=16, pos_fraction=0.5, neg_pos_ub=-1,
        add_gt_as_proposals=True,
    )  # fmt: skip
    nms = dict(type='nms', iou_threshold=0.7)
    cfg = dict(
        type='LFIMaskRCNN',
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[100.0, 110.0, 120.0],
            std=[50.0, 55.0, 60.0], bgr_to_rgb=True, pad_mask=True, pad_size_divisor=32,
        ),
        backbone=dict(
            type='InteractionViT', arch=dict(embed_dims=24, num_layers=2, num_heads=3),
            pretrain_img_size=64, patch_size=8, window_size=4, global_layers=(1,),
            num_queries=3, interaction_layers=(0, 1),
        ),
        neck=dict(type='SimpleFPN', in_channels=24, out_channels=8, num_outs=5),
        rpn_head=dict(
            type='RPNHead', in_channels=8, feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[1.0],
                strides=[2, 4, 8, 16, 32],
            ),
            bbox_coder=coder,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                **levels, roi_layer=dict(type='RoIAlign', output_size=3)
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=16,
                roi_feat_size=3, num_classes=3, bbox_coder=coder,
            ),
            mask_roi_extractor=dict(
                **levels, roi_layer=dict(type='RoIAlign', output_size=4)
            ),
            mask_head=dict(
                type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8,
                num_classes=3,
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=assigner, sampler=dict(sampler, add_gt_as_proposals=False),
                allowed_border=-1, pos_weight=-1, debug=False,
            ),
            rpn_proposal=dict(nms_pre=50, max_per_img=20, nms=nms, min_bbox_size=0),
            rcnn=dict(
                assigner=assigner, sampler=sampler, mask_size=8, pos_weight=-1,
                debug=False,
            ),
        ),
        test_cfg=dict(
            rpn=dict(nms_pre=50, max_per_img=20, nms=nms, min_bbox_size=0),
            rcnn=dict(
                score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5,
                mask_thr_binary=0.5,
            ),
        ),
        teacher=dict(type='LinearTeacher'),
        distiller=dict(
            type='InteractionDistiller',
            losses=dict(
                attention=dict(type='InteractionAttentionLoss'),
                relation=dict(type='InteractionRelationLoss'),
                dynamics=dict(type='InteractionDynamicsLoss'),
            ),
        ),
    )  # fmt: skip
    cfg.update(changes)
    return ConfigDict(cfg)


def build(**changes):
    torch.manual_seed(0)
    model = MODELS.build(detector_cfg(**changes))
    model.init_weights()
    return model


def batch(shapes=((64, 48), (40, 64))) -> dict:
    """Two raw images as a data loader gives them, with one object each."""
    inputs, samples = [], []
    for i, (h, w) in enumerate(shapes):
        inputs.append(torch.randint(0, 255, (3, h, w), dtype=torch.uint8))
        mask = np.zeros((1, h, w), np.uint8)
        mask[0, 8:32, 8:40] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(h, w), ori_shape=(h, w), img_id=i, scale_factor=(1.0, 1.0)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8.0, 40.0, 32.0]]),
            labels=torch.tensor([i]),
            masks=BitmapMasks(mask, h, w),
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses_of(model, data=None) -> dict:
    data = model.data_preprocessor(copy.deepcopy(data or batch()), training=True)
    return model.loss(data['inputs'], data['data_samples'])


def total(losses: dict) -> torch.Tensor:
    flat = [v if isinstance(v, torch.Tensor) else sum(v) for k, v in losses.items()
            if 'loss' in k]  # fmt: skip
    return sum(flat)


def teacher_numbers(model) -> set[int]:
    return {id(p) for p in model.teacher.network.parameters()}


def test_lfi_losses_join_the_detection_losses():
    names = set(losses_of(build()))
    twin = set(losses_of(build(teacher=None)))
    assert names - twin == {
        'loss_lfi_attention',
        'loss_lfi_relation',
        'loss_lfi_dynamics',
    }
    assert {'loss_rpn_cls', 'loss_cls', 'loss_mask'} <= twin


def test_the_teacher_is_frozen_and_in_eval_mode_also_after_train():
    model = build().train()
    assert not any(m.training for m in model.teacher.network.modules())
    assert not any(p.requires_grad for p in model.teacher.network.parameters())


def test_the_teacher_is_neither_a_parameter_nor_in_the_state_dict():
    model, twin = build(), build(teacher=None)
    assert not teacher_numbers(model) & {id(p) for p in model.parameters()}
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert not any('teacher' in name for name, _ in model.named_modules())


@pytest.mark.parametrize('constructor', ['DefaultOptimWrapperConstructor',
                                         'ViTOptimWrapperConstructor'])  # fmt: skip
def test_the_optimizer_never_sees_the_teacher(constructor):
    model = build()
    wrapper = build_optim_wrapper(
        model,
        dict(optimizer=dict(type='AdamW', lr=1e-3), constructor=constructor),
    )
    seen = {id(p) for group in wrapper.optimizer.param_groups for p in group['params']}
    assert not seen & teacher_numbers(model)
    assert {id(p) for p in model.parameters() if p.requires_grad} == seen


def test_the_teacher_follows_to_half_and_float():
    model = build()
    for move, dtype in (
        ('half', torch.float16),
        ('double', torch.float64),
        ('float', torch.float32),
    ):
        getattr(model, move)()
        assert {p.dtype for p in model.teacher.network.parameters()} == {dtype}
    model.to('meta')
    assert {p.device.type for p in model.teacher.network.parameters()} == {'meta'}


def test_a_copy_of_the_model_shares_the_teacher():
    model = build()
    assert copy.deepcopy(model).teacher is model.teacher


def test_init_weights_leaves_the_teacher_alone_and_notices_when_it_is_touched():
    model = MODELS.build(detector_cfg())
    before = model.teacher.weights_hash()
    model.init_weights()
    assert model.teacher.weights_hash() == before
    other = MODELS.build(detector_cfg())
    next(other.teacher.network.parameters()).data += 1
    with pytest.raises(RuntimeError, match='weights of LinearTeacher changed'):
        other.init_weights()


def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none():
    for feedback in (True, False):
        cfg = detector_cfg()
        cfg['backbone']['feedback'] = feedback
        for teacher in (cfg['teacher'], None):
            model = build(backbone=cfg['backbone'], teacher=teacher)
            total(losses_of(model)).backward()
            lost = [n for n, p in model.named_parameters()
                    if p.requires_grad and p.grad is None]  # fmt: skip
            assert lost == [], (feedback, teacher)
            if model.teacher is not None:
                assert all(p.grad is None for p in model.teacher.network.parameters())


def test_without_a_teacher_the_same_model_trains_alone():
    model = build(teacher=None)
    assert model.teacher is None and model.distiller is None
    assert total(losses_of(model)).requires_grad


def test_the_teacher_sees_the_students_pixels_without_padding():
    model = build()
    constant = batch()
    for image, colour in zip(constant['inputs'], ((10, 60, 200), (90, 30, 120))):
        image[:] = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)  # BGR
    losses_of(model, constant)
    (seen,) = model.teacher.seen
    view = model.teacher.view
    rgb = seen * view.std + view.mean
    for image, colour in zip(rgb, ((200, 60, 10), (120, 30, 90))):
        expected = (torch.tensor(colour) / 255.0).view(3, 1, 1).expand_as(image)
        torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)


def test_the_present_texts_are_known_without_asking_the_device():
    model = build()
    data = model.data_preprocessor(batch(), training=True)
    for sample in data['data_samples']:  # as if on a device: no value can be read
        sample.gt_instances.labels = sample.gt_instances.labels.to('meta')
    targets = model.teacher(
        data['inputs'], data['data_samples'], model.data_preprocessor
    )
    assert targets.texts.tolist() == [[0], [1]] and targets.present.all()


def test_padding_is_hidden_from_the_queries_in_training_and_testing(monkeypatch):
    model = build()
    masks = []
    forward = model.backbone.interaction.forward

    def spy(tokens, queries, previous, valid):
        masks.append(valid)
        return forward(tokens, queries, previous, valid)

    monkeypatch.setattr(model.backbone.interaction, 'forward', spy)
    losses_of(model)
    model.eval()
    with torch.no_grad():
        model.test_step(batch())
    assert len(masks) == 4 and all(torch.equal(m, masks[0]) for m in masks)
    assert masks[0].view(2, 8, 8)[1, 5:].sum() == 0  # 40 of 64 rows are image


def test_prediction_needs_no_teacher_and_records_nothing():
    model = build(teacher=None).eval()
    with torch.no_grad():
        results = model.test_step(batch())
    assert results[0].pred_instances.masks.shape[1:] == (64, 48)
    assert model.backbone._trace is None


def test_after_the_stop_the_teacher_is_not_run(monkeypatch):
    cfg = detector_cfg()
    model = build(distiller=dict(cfg['distiller'], schedule=dict(stop=5)))
    monkeypatch.setattr(model.distiller.schedule, 'current', lambda: 0.0)
    losses = losses_of(model)
    assert model.teacher.seen == []
    assert losses['loss_lfi_attention'].item() == 0
    total(losses).backward()
    assert model.backbone.queries.grad is not None


def test_the_same_seed_gives_the_same_losses():
    first, second = losses_of(build()), losses_of(build())
    for name, value in first.items():
        flat = value if isinstance(value, torch.Tensor) else torch.stack(value)
        other = second[name]
        other = other if isinstance(other, torch.Tensor) else torch.stack(other)
        assert torch.equal(flat, other), name


def test_bfloat16_autocast_trains_on_the_cpu():
    model = build()
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model)
    assert losses['loss_lfi_attention'].dtype == torch.float32
    value = total(losses)
    assert torch.isfinite(value)
    value.backward()
    assert torch.isfinite(model.backbone.queries.grad).all()


@pytest.mark.parametrize(
    'changes, error, message',
    [
        (dict(teacher=dict(type='CoCoTeacher')), KeyError,
         r"model.teacher.type='CoCoTeacher' is not registered \(did you mean"),
        (dict(teacher=dict(type='SimpleFPN')), TypeError, 'is not a FrozenTeacher'),
        (dict(teacher=dict(type='LinearTeacher', class_names=('cat', 'dog'))),
         ValueError, '2 class names, but backbone.num_queries=3'),
        (dict(teacher=dict(type='LinearTeacher', present='some')), ValueError,
         "teacher.present='some' is not known; choose from"),
        (dict(distiller=dict(
            detector_cfg().distiller,
            assignment=dict(type='SinkhornAssignment', num_tied=2),
        )), ValueError, 'assignment.num_tied=2; choose 3, or 0'),
    ],
)  # fmt: skip
def test_impossible_configs_are_refused_when_built(changes, error, message):
    with pytest.raises(error, match=message):
        build(**changes)


def test_a_teacher_without_queries_or_recording_backbone_is_refused():
    cfg = detector_cfg()
    with pytest.raises(ValueError, match='backbone.num_queries=0'):
        build(backbone=dict(cfg['backbone'], num_queries=0))
    with pytest.raises(TypeError, match='ResNet records no interactions'):
        build(backbone=dict(type='ResNet', depth=18))


def test_texts_that_are_missing_or_differ_are_refused():
    model = build(teacher=dict(type='LinearTeacher', class_names=None))
    with pytest.raises(RuntimeError, match='has no texts yet'):
        losses_of(model)
    model.set_class_names(CLASSES)
    losses_of(model)
    with pytest.raises(ValueError, match=r"differ .* \['bird', 'fish'\]"):
        model.set_class_names(('cat', 'dog', 'fish'))


def test_a_label_without_a_text_is_named():
    model = build()
    data = batch()
    data['data_samples'][0].gt_instances.labels[:] = 7
    with pytest.raises(ValueError, match='label 7, but the teacher has only 3 texts'):
        losses_of(model, data)
