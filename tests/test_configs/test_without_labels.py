"""Configs of pre-training without labels, of fine-tuning, and of mixed batches."""

from pathlib import Path

import pytest
from mmengine.config import Config

from lfi_mmdet.engine.hooks import ClassNamesHook, DatasetCheckHook
from lfi_mmdet.engine.student_config import student_config

CONFIGS = Path(__file__).parents[2] / 'configs'
PRETRAINING = sorted(CONFIGS.glob('lfi_pretrain/*.py'))
MIXED = sorted(CONFIGS.glob('lfi/*-mixed_*.py'))
FINE_TUNING = {
    'mask-rcnn_vit-s_lfi-pretrained_coco.py': 'vit-s_lfi_coco.py',
    'mask-rcnn_vit-s_lfi-pretrained-joint_coco.py': 'vit-s_lfi_coco.py',
    'mask-rcnn_vit-mini_lfi-pretrained_shapes.py': 'vit-mini_lfi_shapes.py',
    'mask-rcnn_vit-mini_lfi-pretrained-joint_shapes.py': 'vit-mini_lfi_shapes.py',
}


def name(path):
    return path.stem


def detector(file) -> Config:
    return Config.fromfile(CONFIGS / 'lfi' / file)


def pipelines(cfg):
    dataset = cfg.train_dataloader.dataset
    for part in dataset.get('datasets', [dataset]):
        yield part, [step.type for step in part.pipeline]


@pytest.mark.parametrize('path', PRETRAINING, ids=name)
def test_a_pretraining_reads_no_label_and_evaluates_nothing(path):
    cfg = Config.fromfile(path)
    assert cfg.model.type == 'InteractionPretrainer'
    for _, steps in pipelines(cfg):
        assert 'LoadAnnotations' not in steps
    # not from labels
    assert cfg.model.teacher.present in ('teacher', 'captions', 'all')
    for split in ('val', 'test'):
        parts = [f'{split}_{part}' for part in ('cfg', 'dataloader', 'evaluator')]
        assert [cfg[part] for part in parts] == [None] * 3
    assert cfg.find_unused_parameters is False
    hooks = list(cfg.default_hooks)
    assert hooks.index('dataset_check') < hooks.index('class_names')
    assert DatasetCheckHook.priority == ClassNamesHook.priority


@pytest.mark.parametrize('file, before', FINE_TUNING.items())
def test_the_detector_has_the_backbone_and_pixels_of_the_pretraining(file, before):
    cfg = detector(file)
    first = Config.fromfile(CONFIGS / 'lfi_pretrain' / before)
    start = cfg.model.backbone.pop('init_cfg')
    first.model.backbone.pop('init_cfg', None)
    assert cfg.model.backbone == first.model.backbone
    assert start.checkpoint.startswith(f'work_dirs/{Path(before).stem}/')
    own = cfg.model.data_preprocessor
    assert own.pop('pad_mask') and own == first.model.data_preprocessor


@pytest.mark.parametrize(
    'file, twin',
    [
        (file, f'mask-rcnn_vit-{end}.py')
        for file, end in zip(FINE_TUNING, ('s_coco', 's_lfi_coco', 'mini_shapes'))
    ],
)
def test_fine_tuning_is_the_twins_training_from_other_weights(file, twin):
    a, b = detector(file), detector(twin)
    assert {k: v for k, v in a.items() if k != 'model'} == {
        k: v for k, v in b.items() if k != 'model'
    }
    assert a.model.get('teacher') == b.model.get('teacher')


@pytest.mark.parametrize('path', MIXED, ids=name)
def test_a_mixed_batch_has_labels_in_one_branch_and_none_in_the_other(path):
    cfg = Config.fromfile(path)
    (sup, labelled), (unsup, unlabelled) = pipelines(cfg)
    assert 'LoadAnnotations' in labelled and 'LoadAnnotations' not in unlabelled
    assert [step for step in labelled if step != 'LoadAnnotations'] == unlabelled
    for part, branch in ((sup, 'sup'), (unsup, 'unsup')):
        last = part.pipeline[-1]
        assert last.type == 'MultiBranch' and branch in last
        assert list(last.branch_field) == ['sup', 'unsup']
    # not from labels
    assert cfg.model.teacher.present in ('teacher', 'captions', 'all')
    assert cfg.model.sup_labels is True  # what is known of them is used, as in way A
    loader = cfg.train_dataloader
    assert loader.batch_size == loader.sampler.batch_size
    assert sum(loader.sampler.source_ratio) == loader.batch_size
    assert loader.get('batch_sampler') is None


@pytest.mark.parametrize(
    'mixed, twin',
    [
        ('mask-rcnn_vit-s_lfi-mixed_coco.py', 'mask-rcnn_vit-s_coco.py'),
        ('mask-rcnn_vit-mini_lfi-mixed_shapes.py', 'mask-rcnn_vit-mini_shapes.py'),
    ],
)
def test_mixed_batches_are_as_many_and_have_as_many_labels_as_the_twins(mixed, twin):
    a, b = detector(mixed), detector(twin)
    assert a.train_dataloader.sampler.source_ratio[0] == b.train_dataloader.batch_size
    length = b.train_cfg.get('max_iters')
    if length is None:  # 117,266 images of COCO have labels
        length = b.train_cfg.max_epochs * -(-117_266 // b.auto_scale_lr.base_batch_size)
    assert a.train_cfg.max_iters == length
    assert a.optim_wrapper == b.optim_wrapper
    assert a.val_dataloader == b.val_dataloader
    assert a.val_evaluator == b.val_evaluator


@pytest.mark.parametrize('path', MIXED, ids=name)
def test_a_student_of_mixed_batches_is_deployed_with_a_plain_preprocessor(path):
    cfg = student_config(Config.fromfile(path))
    assert cfg.model.data_preprocessor.type == 'DetDataPreprocessor'
    assert not {'unsup_weight', 'sup_weight', 'sup_labels'} & set(cfg.model)
