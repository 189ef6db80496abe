"""LFI in the detectors of mmdet: our configs, made small."""

import copy
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models.detectors import BaseDetector, RetinaNet, RTMDet
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData

from lfi_mmdet import lfi
from lfi_mmdet.engine.export import export_student
from lfi_mmdet.models.detectors import (
    LFIMaskRCNN,
    LFIMixin,
    lfi_class,
    register_lfi_classes,
)
from lfi_mmdet.models.detectors.read_outputs import read_outputs

CONFIGS = Path(__file__).parents[3] / 'configs' / 'lfi'
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


def predict(model) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch_for(model), training=False)
        samples = model.predict(data['inputs'], data['data_samples'])
    return [sample.pred_instances.scores for sample in samples]


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


# -- one function ----------------------------------------------------------------------
def stock() -> Config:
    """RetinaNet as a project has it."""
    cfg = small_cfg('retinanet_r50')
    cfg.model.type = 'RetinaNet'
    for key in ('interaction', 'teacher'):
        cfg.model.pop(key)
    cfg.pop('custom_imports')
    for hook in ('dataset_check', 'class_names'):
        cfg.default_hooks.pop(hook)
    return cfg


def test_a_config_is_turned_into_its_twin_and_left_as_it_was():
    cfg = stock()
    before = cfg.pretty_text
    twin = lfi(cfg, teacher=dict(type='GroundTruthTeacher'), sup_weight=2.0)
    assert cfg.pretty_text == before
    assert twin.model.type == 'LFIRetinaNet' and twin.model.interaction == {}
    assert twin.custom_imports.imports == ['lfi_mmdet']
    assert twin.default_hooks.class_names.type == 'ClassNamesHook'
    assert twin.model.sup_weight == 2.0
    cfg.custom_hooks = [dict(type='ClassNamesHook')]
    assert 'class_names' not in lfi(cfg, teacher=None).default_hooks
    # what is written down is the same again
    written = Config.fromstring(twin.pretty_text, '.py')
    assert isinstance(build(written), LFIMixin)
    with pytest.raises(ValueError, match="model.type='LFIRetinaNet' has LFI already"):
        lfi(twin, teacher=None)


def test_the_model_alone_may_be_turned_and_its_type_be_a_class():
    model = stock().model.to_dict()
    model['type'] = RetinaNet
    twin = lfi(model, dict(type='GroundTruthTeacher'), dict(embed_dims=32))
    assert twin['type'] == 'LFIDetector' and twin['detector'] is RetinaNet
    assert MODELS.build(twin).backbone.embed_dims == 32


PYTHON_STYLE = """
from mmengine.config import read_base
with read_base():
    from .stock import *
model = __import__('lfi_mmdet').lfi(model, teacher=dict(type='GroundTruthTeacher'))
"""


def test_configs_in_python_style_call_it(tmp_path):
    model = stock().model.to_dict()
    del model['type']
    (tmp_path / 'stock.py').write_text(
        'from mmdet.models.detectors import RetinaNet\n'
        f'model = dict({model!r}, type=RetinaNet)\n'
    )
    (tmp_path / 'mine.py').write_text(PYTHON_STYLE)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    model = MODELS.build(cfg.model)
    assert type(model) is MODELS.get('LFIRetinaNet')
    assert model.backbone.num_queries == len(CLASSES)
    # and what a run writes down is the same again
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py', lazy_import=False)
    assert type(MODELS.build(again.model)) is type(model)


def test_a_backbone_with_queries_keeps_its_own():
    cfg = stock()
    cfg.model.backbone = dict(
        type='InteractionBackbone', backbone=cfg.model.backbone.to_dict(), num_queries=3
    )
    assert 'interaction' not in lfi(cfg, teacher=None).model


@pytest.mark.parametrize(
    'change, error, message',
    [
        (dict(type='Nobody'), KeyError, "model.type='Nobody' is not registered"),
        (dict(type=None), KeyError, 'is not registered'),
    ],
)
def test_configs_without_a_detector_are_refused(change, error, message):
    cfg = stock()
    cfg.model.update(change)
    with pytest.raises(error, match=message):
        lfi(cfg, teacher=None)
    with pytest.raises(ValueError, match='has no model with a "type"'):
        lfi(dict(train_dataloader={}), teacher=None)


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


# -- the key of a config ---------------------------------------------------------------
@pytest.mark.parametrize(
    'interaction, error, message',
    [
        (3, TypeError, 'model.interaction=3 is no dict'),
        (dict(type='X', backbone={}), TypeError, r"has \['backbone', 'type'\], which"),
        (dict(num_queries=0), ValueError, 'num_queries=0'),
        (dict(grid_stride=24), ValueError, 'grid_stride=24 is neither a multiple'),
        (dict(stages=[4]), ValueError, r'stages=\[4\]: choose from the 4 outputs'),
        (dict(unknown=1), TypeError, 'unknown'),
    ],
)
def test_impossible_interactions_are_refused(interaction, error, message):
    cfg = small_cfg('retinanet_r50')
    cfg.model.interaction = interaction
    with pytest.raises(error, match=message):
        build(cfg)


def test_a_backbone_with_queries_takes_no_more():
    cfg = small_cfg('retinanet_r50')
    inner = cfg.model.backbone.to_dict()
    cfg.model.backbone = dict(type='InteractionBackbone', backbone=inner, num_queries=3)
    with pytest.raises(
        TypeError, match="type='InteractionBackbone' has queries of its"
    ):
        build(cfg)


def test_heads_that_do_not_tell_their_classes_are_asked_about():
    cfg = small_cfg('retinanet_r50')
    cfg.model.bbox_head.num_classes = None
    with pytest.raises(ValueError, match='tell no numbers of classes; give model.int'):
        build(cfg)


def test_a_backbone_without_queries_is_named():
    cfg = small_cfg('retinanet_r50')
    cfg.model.pop('interaction')
    with pytest.raises(TypeError, match='ResNet records no interactions: give it'):
        build(cfg)
