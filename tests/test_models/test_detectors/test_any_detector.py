"""LFI in the detectors of mmdet: our configs, made small."""

import pickle
from pathlib import Path

import pytest
import torch
from mmdet.models.detectors import RetinaNet
from mmdet.registry import MODELS
from mmengine.config import Config

from lfi_mmdet.engine.export import export_student
from lfi_mmdet.models.detectors import (
    LFIMaskRCNN,
    LFIMixin,
    lfi_class,
    register_lfi_classes,
)
from lfi_mmdet.models.detectors.read_outputs import read_outputs
from tests.small_detectors import (
    CLASSES,
    DETECTORS,
    batch,
    build,
    losses_of,
    predict,
    small_cfg,
    total,
)


def without_gradient(model) -> set[str]:
    total(losses_of(model)).backward()
    return {
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    }


def stock_cfg(cfg: Config) -> Config:
    """The config without LFI."""
    plain = Config.fromstring(cfg.pretty_text, '.py')
    plain.model.type = cfg.model.type.removeprefix('LFI')
    for key in ('interaction', 'teacher'):
        plain.model.pop(key)
    return plain


@pytest.mark.parametrize('feedback', [False, True])
@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_trains_predicts_saves_and_loads(name, feedback, tmp_path):
    cfg = small_cfg(name)
    cfg.model.interaction.feedback = feedback
    model = build(cfg).train()
    assert isinstance(model, LFIMixin) and cfg.model.type.startswith('LFI')
    assert model.backbone.num_queries == len(CLASSES)
    losses = losses_of(model)
    assert losses['loss_lfi_attention'] > 0 and losses['loss_lfi_dynamics'] >= 0
    # DDP waits for all of them; mmdet's own may leave some out
    assert without_gradient(model) == without_gradient(build(stock_cfg(cfg)).train())
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert all(torch.isfinite(p).all() for p in model.parameters())

    torch.save(model.state_dict(), tmp_path / 'trained.pth')
    again = build(cfg)
    state = torch.load(tmp_path / 'trained.pth', weights_only=True)
    again.load_state_dict(state, strict=True)
    found = [predict(one) for one in (model, again)]
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize('name', DETECTORS)
def test_without_feedback_the_detector_is_the_one_of_mmdet(name):
    cfg = small_cfg(name)
    model, twin = build(cfg), build(stock_cfg(cfg))
    assert not isinstance(twin, LFIMixin)
    state, wanted = model.state_dict(), set(twin.state_dict())
    added = {key for key in set(state) - wanted}
    assert all(
        k.startswith(('backbone.queries', 'backbone.interaction')) for k in added
    )
    # stock mmdet takes the file, and finds the same
    twin.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=True)
    for ours, theirs in zip(predict(model), predict(twin), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('feedback', [False, True])
@pytest.mark.parametrize('by', ['key', 'backbone', 'detector'])
def test_the_student_is_exported_alone(by, feedback, tmp_path):
    cfg = small_cfg('retinanet_r50')
    cfg.model.interaction.feedback = feedback
    if by == 'backbone':
        settings = dict(cfg.model.pop('interaction'), num_queries=len(CLASSES))
        inner = cfg.model.backbone.to_dict()
        cfg.model.backbone = dict(
            type='InteractionBackbone', backbone=inner, **settings
        )
    elif by == 'detector':
        cfg.model.update(type='LFIDetector', detector='RetinaNet')
    model = build(cfg)
    with torch.no_grad():  # queries write, and the outputs differ
        for name, parameter in model.named_parameters():
            if name.endswith('interaction.gamma'):
                parameter.fill_(1.0)
    content = dict(meta=dict(cfg=cfg.pretty_text), state_dict=model.state_dict())
    torch.save(content, tmp_path / 'trained.pth')
    found = export_student(str(tmp_path / 'trained.pth'), tmp_path / 'student.pth')
    assert found.queries == feedback and (found.model == 'RetinaNet') != feedback
    student = build(Config.fromfile(found.config))
    state = torch.load(found.weights, weights_only=True)['state_dict']
    student.load_state_dict(state, strict=True)
    assert getattr(student, 'teacher', None) is None
    # a stock detector needs nothing of ours
    text = Path(found.config).read_text()
    assert ('lfi_mmdet' in text.partition('\n')[2]) == feedback
    assert ('ClassNamesHook' in text) == feedback
    for ours, theirs in zip(predict(model), predict(student), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_backbone_that_was_pre_trained_without_labels_is_taken_over(tmp_path):
    cfg = small_cfg('retinanet_r50').model
    settings = dict(cfg.interaction, num_queries=len(CLASSES))
    inner = dict(cfg.backbone.to_dict(), frozen_stages=-1)
    pretrainer = MODELS.build(
        dict(
            type='InteractionPretrainer',
            data_preprocessor=cfg.data_preprocessor.to_dict(),
            backbone=dict(type='InteractionBackbone', backbone=inner, **settings),
            teacher=dict(type='GroundTruthTeacher', grid_size=8),
            distiller=dict(
                type='InteractionDistiller',
                losses=dict(attention=dict(type='InteractionAttentionLoss')),
            ),
        )
    )
    pretrainer.init_weights()
    pretrainer.set_class_names(CLASSES)
    data = pretrainer.data_preprocessor(batch(same_size=False), training=True)
    losses = pretrainer(data['inputs'], data['data_samples'], mode='loss')
    assert set(losses) == {'loss_lfi_attention'}
    total(losses).backward()
    named = pretrainer.backbone.named_parameters()
    assert [n for n, p in named if p.requires_grad and p.grad is None] == []
    torch.save(dict(state_dict=pretrainer.state_dict()), tmp_path / 'pretrained.pth')
    path = str(tmp_path / 'pretrained.pth')
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    model = MODELS.build(cfg)
    model.init_weights()
    own = model.backbone.state_dict()
    for name, value in pretrainer.backbone.state_dict().items():
        torch.testing.assert_close(own[name], value, msg=name)


# -- detectors of others ---------------------------------------------------------------
@MODELS.register_module()
class DetectorOfAProject(RetinaNet):
    """Registered after our import."""


def test_a_detector_of_another_package_needs_no_class():
    cfg = small_cfg('retinanet_r50')
    cfg.model.update(type='LFIDetector', detector='DetectorOfAProject')
    model = build(cfg)
    assert isinstance(model, DetectorOfAProject) and isinstance(model, LFIMixin)
    assert losses_of(model)['loss_lfi_attention'] > 0
    assert register_lfi_classes() == ['LFIDetectorOfAProject']
    assert MODELS.get('LFIDetectorOfAProject') is type(model)


def test_a_detector_that_is_written_out_has_one_class_only():
    assert lfi_class(MODELS.get('MaskRCNN')) is LFIMaskRCNN
    assert lfi_class(LFIMaskRCNN) is LFIMaskRCNN


def test_a_name_that_another_package_has_taken_is_named(monkeypatch):
    class LFIRetinaNet:
        pass

    monkeypatch.setitem(MODELS.module_dict, 'LFIRetinaNet', LFIRetinaNet)
    with pytest.raises(KeyError, match='LFIRetinaNet is registered by .*detector=.Ret'):
        register_lfi_classes()


@pytest.mark.parametrize(
    'detector, error, message',
    [
        ('RetinaNett', KeyError, r"model.detector.type='RetinaNett' is not registered"),
        ('ResNet', TypeError, "'ResNet' is not a BaseDetector"),
    ],
)
def test_what_is_no_detector_is_refused(detector, error, message):
    with pytest.raises(error, match=message):
        MODELS.build(dict(type='LFIDetector', detector=detector))
    with pytest.raises(TypeError, match='is no detector of mmdet'):
        lfi_class(dict)


# -- what the neck leaves out ----------------------------------------------------------
@pytest.mark.parametrize(
    'neck, expected',
    [
        (dict(start_level=0), [-4, -3, -2, -1]),
        (dict(start_level=1), [-3, -2, -1]),
        ('list', [-3, -2, -1]),
        (None, [-4, -3, -2, -1]),
    ],
)
def test_outputs_that_the_neck_does_not_read_are_found(neck, expected):
    cfg = small_cfg('retinanet_r50')
    cfg.model.interaction.feedback = True
    if neck == 'list':
        bfp = dict(type='BFP', in_channels=32, num_levels=5, refine_level=2)
        cfg.model.neck = [cfg.model.neck.to_dict(), bfp]
    elif neck is None:
        cfg.model.neck = None
    else:
        cfg.model.neck.update(neck)
    model = build(cfg).train()
    modes = [module.training for module in model.neck.modules()] if neck else [True]
    assert read_outputs(model) == expected
    assert all(modes)
    frozen = {n for n, p in model.backbone.named_parameters() if not p.requires_grad}
    unread = 4 - len(expected)
    assert {n for n in frozen if 'interaction_out' in n} == {
        f'interaction_out.{i}.weight' for i in range(unread)
    }


def test_a_neck_that_does_not_fit_is_named():
    cfg = small_cfg('retinanet_r50')
    cfg.model.interaction.feedback = True
    cfg.model.neck.in_channels = [8, 16, 32, 65]
    with pytest.raises(ValueError, match=r'model.neck \(FPN\) fails on maps of a back'):
        build(cfg)


@pytest.mark.parametrize('name', ['retinanet_r50', 'mask-rcnn_r50'])
def test_a_pickled_detector_is_the_same(name):
    model = build(small_cfg(name))
    model.teacher = model.distiller = None  # is in no file
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    for first, second in zip(predict(model), predict(again), strict=True):
        torch.testing.assert_close(first, second)
