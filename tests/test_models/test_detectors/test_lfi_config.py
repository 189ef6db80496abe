"""From the config of a detector to that of its LFI twin."""

import pytest
from mmdet.models.detectors import RetinaNet
from mmdet.registry import MODELS
from mmengine.config import Config

from lfi_mmdet import lfi
from lfi_mmdet.models.detectors import LFIMixin
from tests.small_detectors import (
    CLASSES,
    build,
    small_cfg,
)


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
