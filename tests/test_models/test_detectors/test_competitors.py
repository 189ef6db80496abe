"""The competitors in a detector: same teacher, no queries."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData

from lfi_mmdet.engine.export import export_student
from lfi_mmdet.models.distillers import FeatureDistiller, build_distiller
from tests.test_models.test_teachers.tiny_open_clip import write_configs
from tests.test_tools.conftest import in_place
from tests.tiny import CLASSES, tiny_config_text

LOSSES = dict(
    fitnet='FitNetLoss',
    cwd='CWDLoss',
    rkd='RKDLoss',
    trg='TRGLoss',
    at='AttentionTransferLoss',
    mgd='MGDLoss',
    acam='ACAMLoss',
    vild='ViLDLoss',
)
TEACHERS = dict(
    clip=dict(type='CLIPTeacher', model='tiny-clip'),
    coca=dict(type='CoCaTeacher', model='tiny-coca'),
    similar=dict(type='CoCaTeacher', model='tiny-coca', reading='similarity'),
)


@pytest.fixture(scope='module', autouse=True)
def tiny_models(tmp_path_factory):
    import open_clip

    with pytest.MonkeyPatch.context() as patch:
        # reading the BPE vocabulary takes longer than a test
        patch.setattr(
            open_clip.factory, 'SimpleTokenizer', cache(open_clip.SimpleTokenizer)
        )
        open_clip.add_model_config(write_configs(tmp_path_factory.mktemp('models')))
        yield


@cache
def tiny_text() -> str:
    """The tiny detector with LFI, its bases written out: reading them takes long."""
    return Config.fromstring(tiny_config_text(Path()), '.py').pretty_text


def tiny_cfg() -> Config:
    return Config.fromstring(tiny_text(), '.py')


def model_cfg(losses, teacher='clip', extra=None) -> Config:
    """The tiny detector without queries, with competitors by short name."""
    cfg = tiny_cfg()
    cfg.model.backbone.num_queries = 0
    cfg.model.teacher = dict(TEACHERS[teacher], **(extra or {}))
    cfg.model.distiller = dict(
        type='FeatureDistiller',
        losses={name: dict(type=LOSSES[name]) for name in losses},
    )
    return cfg


def build(cfg):
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if model.teacher is not None:
        model.set_class_names(CLASSES)
    return model.train()


def batch() -> dict:
    """Two raw images of different sizes, with one object each."""
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for i, (h, w) in enumerate(((64, 48), (40, 64))):
        pixels = torch.randint(0, 255, (3, h, w), generator=generator)
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
        inputs.append(pixels.to(torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses_of(model) -> dict:
    data = model.data_preprocessor(copy.deepcopy(batch()), training=True)
    return model.loss(data['inputs'], data['data_samples'])


def total(losses) -> torch.Tensor:
    values = [
        v if isinstance(v, list) else [v] for k, v in losses.items() if 'loss' in k
    ]
    return sum(value for some in values for value in some)


def kept(targets_of):
    """Remember what a teacher returns."""
    seen = []

    def call(*args, **kwargs):
        seen.append(targets_of(*args, **kwargs))
        return seen[-1]

    return call, seen


@pytest.mark.parametrize('name', LOSSES)
def test_a_step_with_each_competitor_trains_every_parameter(name):
    model = build(model_cfg([name]))
    names = set(losses_of(model))
    twin = model_cfg([name])
    twin.model.teacher = None
    assert names - set(losses_of(build(twin))) == {f'loss_kd_{name}'}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        losses = losses_of(model)
        assert torch.isfinite(losses[f'loss_kd_{name}'])
        assert losses[f'loss_kd_{name}'] > 0
        optimizer.zero_grad()
        total(losses).backward()
        lost = [n for n, p in model.named_parameters()
                if p.requires_grad and p.grad is None]  # fmt: skip
        assert lost == []
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('name', LOSSES)
def test_each_competitor_alone_teaches_the_backbone(name):
    model = build(model_cfg([name]))
    losses_of(model)[f'loss_kd_{name}'].backward()
    touched = [p for p in model.backbone.parameters() if p.grad is not None]
    assert len(touched) == len(list(model.backbone.parameters()))
    assert any(p.grad.abs().sum() > 0 for p in touched)


@pytest.mark.parametrize('teacher', TEACHERS)
def test_all_competitors_work_with_every_teacher_that_has_tokens(teacher):
    losses = losses_of(build(model_cfg(LOSSES, teacher)))
    found = {name for name in losses if name.startswith('loss_kd_')}
    assert found == {f'loss_kd_{name}' for name in LOSSES}
    assert all(torch.isfinite(losses[name]) for name in found)


def test_tokens_are_made_only_where_a_loss_wants_them():
    model = build(model_cfg(['fitnet']))
    assert model.teacher.wants_tokens == 'tower'
    model.teacher.targets, seen = kept(model.teacher.targets)
    losses_of(model)
    assert seen[0].tokens.shape == (2, 1, 4, 4, 32) and seen[0].class_embeds is None
    assert build(model_cfg(['vild'])).teacher.wants_tokens == 'joint'
    cfg = tiny_cfg()
    cfg.model.teacher = dict(TEACHERS['clip'])
    lfi = build(cfg)
    assert lfi.teacher.wants_tokens is None
    lfi.teacher.targets, seen = kept(lfi.teacher.targets)
    losses_of(lfi)
    assert seen[0].tokens is None


@pytest.mark.parametrize('wrapper', ['RandomTeacher', 'ShuffledTeacher'])
def test_teachers_that_stand_in_front_of_another_hand_its_tokens_on(wrapper):
    cfg = model_cfg(['fitnet'])
    cfg.model.teacher = dict(type=wrapper, teacher=dict(TEACHERS['clip']))
    assert losses_of(build(cfg))['loss_kd_fitnet'] > 0


def test_no_label_takes_part():
    model = build(model_cfg(LOSSES, extra=dict(present='all')))
    with_labels = model.distiller.regions
    data = model.data_preprocessor(copy.deepcopy(batch()), training=True)
    samples = [DetDataSample(metainfo=s.metainfo) for s in data['data_samples']]
    targets = model.teacher(data['inputs'], samples, model.data_preprocessor)
    shapes = [sample.img_shape for sample in samples]
    with model.backbone.interactions(shapes) as trace:
        model.backbone(data['inputs'])
    losses = model.distiller(trace, targets, shapes, (16, 16))
    assert with_labels is not None and len(losses) == len(LOSSES)
    assert all(torch.isfinite(value) for value in losses.values())


def test_boxes_of_regions_are_proposals_within_the_images():
    model = build(model_cfg(['vild']))
    data = model.data_preprocessor(copy.deepcopy(batch()), training=True)
    outputs = model.backbone(data['inputs'])
    boxes, logits = model.distiller.regions(outputs, [(64, 48), (40, 64)], 5)
    assert boxes.shape == (10, 5) and logits.shape == (10, len(CLASSES) + 1)
    assert boxes[:, 0].tolist() == [0.0] * 5 + [1.0] * 5
    assert (boxes[:5, 1:] <= torch.tensor([48.0, 64.0] * 2)).all()
    assert (boxes[5:, 1:] <= torch.tensor([64.0, 40.0] * 2)).all()
    assert not boxes.requires_grad and logits.requires_grad


def test_iterations_without_the_teacher_reach_the_same_parameters(monkeypatch):
    model = build(model_cfg(LOSSES))
    monkeypatch.setattr(model.distiller.schedule, 'current', lambda: 0.0)
    monkeypatch.setattr(model.teacher, 'targets', None)  # it must not be run
    losses = losses_of(model)
    assert losses['loss_kd_acam'].item() == 0
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_schedule_scales_every_competitor(monkeypatch):
    model = build(model_cfg(['fitnet', 'at']))
    whole = losses_of(model)
    monkeypatch.setattr(model.distiller.schedule, 'current', lambda: 0.25)
    quarter = losses_of(model)
    for name in ('loss_kd_fitnet', 'loss_kd_at'):
        torch.testing.assert_close(quarter[name], whole[name] / 4)


def test_bfloat16_autocast_gives_float32_losses():
    model = build(model_cfg(LOSSES))
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model)
    for name in LOSSES:
        assert losses[f'loss_kd_{name}'].dtype == torch.float32
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.distiller.parameters())


def test_a_copy_of_the_model_asks_its_own_heads():
    model = build(model_cfg(['vild']))
    twin = copy.deepcopy(model)
    assert twin.distiller.regions.args[0] is twin
    assert not any('regions' in key for key in twin.state_dict())


def test_the_exported_student_is_the_plain_detector(monkeypatch, tmp_path):
    in_place(monkeypatch, tmp_path)
    cfg = model_cfg(['fitnet', 'mgd'])
    model = build(cfg)
    path = tmp_path / 'trained.pth'
    torch.save(
        dict(meta=dict(cfg=cfg.pretty_text), state_dict=model.state_dict()), path
    )
    export = export_student(str(path), tmp_path / 'student.pth')
    assert export.model == 'MaskRCNN' and not export.queries
    held = sum(p.numel() for p in model.distiller.parameters())
    assert export.dropped == dict(distiller=held)
    state = torch.load(export.weights, weights_only=True)['state_dict']
    student = MODELS.build(Config.fromfile(export.config).model)
    student.load_state_dict(state, strict=True)


# -- without labels ------------------------------------------------------------------
@pytest.mark.parametrize('name', sorted(set(LOSSES) - {'vild'}))
def test_a_backbone_learns_from_each_competitor_alone(name):
    cfg = model_cfg([name], extra=dict(present='all')).model
    keys = ('backbone', 'teacher', 'distiller', 'data_preprocessor')
    held = {key: cfg[key] for key in keys}
    model = MODELS.build(dict(type='InteractionPretrainer', **held))
    model.set_class_names(CLASSES)
    data = model.data_preprocessor(copy.deepcopy(batch()), training=True)
    samples = [DetDataSample(metainfo=s.metainfo) for s in data['data_samples']]
    losses = model(data['inputs'], samples, mode='loss')
    assert set(losses) == {f'loss_kd_{name}'}
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_images_without_labels_feel_every_competitor_in_a_mixed_batch():
    model = build(model_cfg(LOSSES, extra=dict(present='all')))
    data = model.data_preprocessor(copy.deepcopy(batch()), training=True)
    inputs, labelled = data['inputs'], data['data_samples']
    bare = [DetDataSample(metainfo=sample.metainfo) for sample in labelled]
    losses = model.loss(dict(sup=inputs, unsup=inputs), dict(sup=labelled, unsup=bare))
    for name in LOSSES:
        assert f'loss_kd_{name}' in losses and f'unsup_loss_kd_{name}' in losses
    sum(losses[f'unsup_loss_kd_{name}'] for name in LOSSES).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


# -- what cannot be ------------------------------------------------------------------
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(teacher=dict(type='GroundTruthTeacher')),
         'needs dense tokens, which GroundTruthTeacher does not give; choose CLIP'),
        (dict(distiller=dict(tokens='tower')), "must be 'joint'"),
        (dict(distiller=dict(losses=dict(vild=None))), 'names no loss'),
        (dict(distiller=dict(schedule=dict(stopp=1))), r"unknown \['stopp'\]"),
    ],
)  # fmt: skip
def test_impossible_configs_are_refused_when_built(change, message):
    cfg = model_cfg(['vild'])
    for part, settings in change.items():
        if part == 'teacher':
            cfg.model.teacher = settings
        else:
            cfg.model[part].update(settings)
    with pytest.raises(ValueError, match=message):
        build(cfg)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(token_layer=2), 'token_layer=2: the teacher gives 1 layers of tokens'),
        (dict(output=1), 'distiller.output=1: the backbone has 1 outputs'),
    ],
)
def test_layers_that_are_not_there_are_named(change, message):
    cfg = model_cfg(['fitnet'])
    cfg.model.distiller.update(change)
    with pytest.raises(ValueError, match=message):
        losses_of(build(cfg))


def test_regions_are_refused_where_nothing_finds_them():
    model = build(model_cfg(['fitnet']))
    spec = model.backbone.interaction_spec
    cfg = dict(type='FeatureDistiller', losses=dict(r=dict(type='ViLDLoss')))
    with pytest.raises(ValueError, match='which need a detector with an RPN'):
        build_distiller(cfg, spec, model.teacher, regions=None)
    cfg = dict(type='FeatureDistiller', losses=dict(f=dict(type='FitNetLoss')))
    assert isinstance(build_distiller(cfg, spec, model.teacher), FeatureDistiller)
