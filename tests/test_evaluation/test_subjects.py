"""Twin and variants differ in what LFI adds, and in nothing else."""

import copy

import pytest
import torch
from torch import nn

from lfi_mmdet.engine.hooks.compile_hook import compile_parts
from lfi_mmdet.evaluation import Setting, Subject, Variant, build_subjects, head_work
from lfi_mmdet.evaluation.subjects import class_names, inference_tensors
from tests.tiny import CLASSES

PLAIN = {'model.backbone.num_queries': 0}
SETTING = Setting(shape=(64, 64))


@pytest.fixture
def build(tiny_config):
    def build(**variants):
        """Variants by name, each as (targets, options)."""
        path, measures = tiny_config.filename, ('train_step',)
        setting = variants.pop('setting', SETTING)
        return build_subjects(
            Variant('twin', path, 'none', measures, options=PLAIN),
            [
                Variant(name, path, targets, measures, options=options)
                for name, (targets, options) in variants.items()
            ],
            setting,
        )

    return build


def test_all_have_the_twins_weights_and_do_the_same_work(build):
    subjects = build(none=('none', {}), online=('online', {}), cached=('cached', {}))
    twin = subjects[0]
    works, scores = [], []
    for subject in subjects:
        for name, value in twin.model.state_dict().items():
            assert torch.equal(subject.model.state_dict()[name], value), name
        torch.manual_seed(7)
        with head_work(subject.model) as work:
            subject.step()
        works.append(work)
        with torch.no_grad():
            scores.append(subject.model.eval()(**subject.inputs, mode='tensor')[0][0])
    assert works[0] == works[1] == works[2] == works[3]
    # feedback starts at 0: the same detections from the first step on
    assert all(torch.equal(scores[0], other) for other in scores[1:])


def test_another_seed_gives_other_weights(build):
    def weight(seed):
        (twin,) = build(setting=Setting((64, 64), seed=seed))
        return twin.model.backbone.patch_embed.proj.weight

    assert torch.equal(weight(3), weight(3)) and not torch.equal(weight(3), weight(4))


def test_the_batch_is_for_training_and_one_image_for_inference(build):
    (twin,) = build(setting=Setting((64, 64), batch_size=3))
    assert len(twin.data['inputs']) == 3 and len(twin.inputs['inputs']) == 1


def test_a_config_that_is_no_twin_is_refused(build):
    with pytest.raises(ValueError, match=r'odd is not the first config .*pos_embed'):
        build(odd=('none', {'model.backbone.pretrain_img_size': 32}))
    with pytest.raises(ValueError, match=r'odd is not the first .*patch_embed'):
        build(odd=('none', {'model.backbone.patch_size': 8}))


def test_steps_of_a_run_bring_every_teacher_round(build):
    interval = 'model.distiller.schedule'
    subjects = build(
        a=('online', {interval: dict(interval=2)}),
        b=('online', {interval: dict(interval=3)}),
    )
    assert [subject.step.steps for subject in subjects] == [6, 6, 6]


def test_a_teacher_has_texts_before_anything_is_measured(build, tiny_config):
    cfg = copy.deepcopy(tiny_config)
    assert 'class_names' not in cfg.model.teacher
    _, online = build(online=('online', {}))
    assert online.model.teacher.class_names == ('person', 'bicycle', 'car')
    own = {'model.teacher.class_names': list(CLASSES)}
    _, online = build(online=('online', own))
    assert online.model.teacher.class_names == CLASSES


def test_there_are_as_many_names_as_classes():
    assert class_names(2) == ['person', 'bicycle']
    assert class_names(82)[79:] == ['toothbrush', 'class 80', 'class 81']


def test_blocks_are_compiled_one_by_one(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, 'compile', lambda self: compiled.append(self))
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    compile_parts(model, 'blocks')
    compile_parts(model, 'blocks.1')
    assert compiled == [*model.blocks, model.blocks[1]]
    with pytest.raises(ValueError, match='compile=body: .*body'):
        compile_parts(model, 'body')


def test_a_variant_is_described_by_what_makes_it_again(build):
    options = {'model.teacher.blur': [2.0, 1.0]}
    _, online = build(online=('online', options))
    online.step()
    described = online.describe()
    assert described['options'] == options and described['targets'] == 'online'
    assert described['teacher'] == dict(
        type='GroundTruthTeacher', grid_size=8, blur=[2.0, 1.0]
    )
    assert described['optimizer'] == 'OptimWrapper'


def test_a_distiller_is_not_in_memory_at_inference(tiny_config):
    subject = Subject(Variant('a', tiny_config.filename, 'online'), SETTING)
    before = len(inference_tensors(subject.model))
    subject.model.distiller.extra = nn.Linear(1, 1)
    assert len(inference_tensors(subject.model)) == before
