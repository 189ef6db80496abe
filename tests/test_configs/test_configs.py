"""Every config builds, and an LFI config states only what differs from its twin."""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config

from lfi_mmdet.engine.hooks import ClassNamesHook, DatasetCheckHook
from lfi_mmdet.models.detectors.with_queries import class_count

CONFIGS = Path(__file__).parents[2] / 'configs'
ALL = sorted(CONFIGS.glob('lfi/*.py'))
PAIRS = [
    ('mask-rcnn_vit-s_coco.py', 'mask-rcnn_vit-s_lfi_coco.py'),
    ('mask-rcnn_vit-t_coco.py', 'mask-rcnn_vit-t_lfi_coco.py'),
    ('mask-rcnn_vit-b_coco.py', 'mask-rcnn_vit-b_lfi_coco.py'),
    ('mask-rcnn_vit-s_3x_coco.py', 'mask-rcnn_vit-s_lfi_3x_coco.py'),
    ('mask-rcnn_vitdet-b_coco.py', 'mask-rcnn_vitdet-b_lfi_coco.py'),
    ('mask-rcnn_vit-mini_shapes.py', 'mask-rcnn_vit-mini_lfi_shapes.py'),
    ('mask-rcnn_vit-t_coco-mini.py', 'mask-rcnn_vit-t_lfi_coco-mini.py'),
    ('mask-rcnn_vit-mini_coco-mini.py', 'mask-rcnn_vit-mini_lfi_coco-mini.py'),
]


@cache
def read(path: Path) -> Config:
    return Config.fromfile(path)  # takes long


def load(name: str | Path) -> Config:
    """A config, by its name or path, that may be changed."""
    return copy.deepcopy(read(CONFIGS / 'lfi' / name))


@pytest.mark.parametrize('path', ALL, ids=lambda path: path.stem)
def test_a_config_builds_and_its_parts_agree(path):
    cfg = load(path)
    assert cfg.get('find_unused_parameters', False) is False
    assignment = (cfg.model.get('distiller') or {}).get('assignment')
    if 'teacher' in cfg.model and cfg.model.teacher.type != 'GroundTruthTeacher':
        cfg.model.teacher = cfg.model.distiller = None  # its weights are downloads
    model = MODELS.build(cfg.model)
    classes = cfg.train_dataloader.dataset.get('metainfo', {}).get('classes')
    count = class_count(cfg.model)  # all heads tell the same
    assert classes is None or len(classes) == count
    tied = assignment.num_tied if assignment else model.backbone.num_queries
    assert tied in (0, count) and model.backbone.num_queries >= tied


@pytest.mark.parametrize('path', ALL, ids=lambda path: path.stem)
def test_the_dataset_is_checked_before_its_class_names_are_used(path):
    # of hooks with the same priority, the one named first runs first
    names = list(load(path).default_hooks)
    assert names.index('dataset_check') < names.index('class_names')
    assert DatasetCheckHook.priority == ClassNamesHook.priority


@pytest.mark.parametrize('twin, lfi', PAIRS)
def test_outside_the_model_an_lfi_config_is_its_twin(twin, lfi):
    a, b = load(twin), load(lfi)
    assert {k: v for k, v in a.items() if k != 'model'} == {
        k: v for k, v in b.items() if k != 'model'
    }


@pytest.mark.parametrize('twin, lfi', PAIRS)
def test_within_the_model_lfi_adds_queries_teacher_and_distiller_only(twin, lfi):
    a, b = load(twin).model, load(lfi).model
    assert b.pop('teacher')
    assert b.pop('distiller', 'the default')
    assert (a.pop('type'), b.pop('type')) == ('MaskRCNN', 'LFIMaskRCNN')
    assert b.backbone.pop('num_queries') and b.backbone.pop('interaction_layers')
    assert a == b


#: Our configs of mmdet's detectors; the twin is the config of mmdet they inherit
OTHERS = [
    path
    for path in ALL
    if "_base_ = 'mmdet::" in path.read_text() and path.stem.endswith('_coco')
]


@pytest.mark.parametrize('path', OTHERS, ids=lambda path: path.stem)
def test_beside_a_config_of_mmdet_lfi_adds_three_keys_and_two_hooks(path):
    base = re.search("_base_ = 'mmdet::.*'", path.read_text()).group(0)
    ours, stock = load(path), Config.fromstring(base, '.py')
    assert ours.custom_imports.imports == ['lfi_mmdet']
    assert ours.default_hooks.pop('dataset_check').type == 'DatasetCheckHook'
    assert ours.default_hooks.pop('class_names').type == 'ClassNamesHook'
    assert ours.default_hooks == stock.default_hooks
    assert ours.model.pop('interaction') == {} and ours.model.pop('teacher')
    assert ours.model.pop('type') == f'LFI{stock.model.pop("type")}'
    skip = ('custom_imports', 'default_hooks')
    assert {k: v for k, v in ours.items() if k not in skip} == {
        k: v for k, v in stock.items() if k not in skip
    }


def test_there_is_a_config_for_each_of_the_detectors():
    kinds = {load(path).model.type for path in OTHERS}
    assert kinds == {
        'LFICascadeRCNN', 'LFIDINO', 'LFIFCOS', 'LFIFasterRCNN', 'LFIMask2Former',
        'LFIMaskRCNN', 'LFIRTMDet', 'LFIRetinaNet', 'LFISOLOv2',
    }  # fmt: skip


def test_the_coco_recipe_is_the_published_one():
    cfg = load('mask-rcnn_vit-s_lfi_coco.py')
    assert cfg.model.backbone.arch == 'deit-small'
    assert cfg.model.backbone.window_size == 14
    assert tuple(cfg.model.backbone.global_layers) == (2, 5, 8, 11)
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs) == (1e-4, 12)
    assert cfg.optim_wrapper.optimizer.weight_decay == 0.05
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    assert tuple(cfg.train_pipeline[2].scale) == (1333, 800)


def test_the_table_of_configs_has_every_config_and_no_other():
    table = (CONFIGS / 'lfi' / 'README.md').read_text()
    rows = re.findall(r'^\| \[(.*?)\]\((.*?)\) \|', table, re.MULTILINE)
    assert sorted(rows) == sorted((path.stem, path.name) for path in ALL)
