"""Data, configs and start weights of a study's runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from lfi_mmdet.engine.hooks.paired_start_hook import weights_digest
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation.study.datasets import (
    EvaluationSet,
    SettingData,
    choose_images,
    data_digest,
    draw_labels,
    prepare_data,
    rest_file,
)
from lfi_mmdet.evaluation.study.hashes import value_digest
from lfi_mmdet.evaluation.study.plan import parse_study
from lfi_mmdet.evaluation.study.run_config import (
    apply,
    load,
    plain,
    relocate,
    set_length,
    write_config,
)
from lfi_mmdet.evaluation.study.start_weights import write_start
from lfi_mmdet.evaluation.study.tasks import labelled_batch
from tests.tiny import tiny_config_text, write_tiny_coco

ROOT = Path(__file__).parents[3]

SCENES = dict(train=10, val=2, unlabeled=0, seed=1, size=48)


def setting(tmp_path, **changes):
    given = dict(
        scenes=SCENES, labels=0.5, tests=dict(line=dict(scenes=dict(domain='line')))
    )
    content = dict(
        name='test', seeds=[0], config='c.py', iterations=4, val_interval=2,
        settings=dict(s={**given, **changes}), arms=dict(a=dict(twin=True)),
    )  # fmt: skip
    (found,) = parse_study(content, tmp_path / 'study.yaml').settings.values()
    return found


def ids(path):
    return {image['id'] for image in json.loads(path.read_text())['images']}


def test_subsets_of_a_seed_are_nested_and_seeds_differ():
    images = [*range(100, 300)]
    small, middle, count = (
        choose_images(images, amount, 0, '') for amount in (0.01, 0.1, 50)
    )
    assert len(small) == 2 and len(middle) == 20 and len(count) == 50
    assert small < middle < count
    assert choose_images(images[::-1], 0.1, 0, '') == middle
    assert choose_images(images, 0.1, 1, '') != middle
    with pytest.raises(InputError, match='labels: 201 images asked for, 200 are there'):
        choose_images(images, 201, 0, 'labels')


def test_scenes_are_made_once_and_a_test_set_is_the_same_scenes_in_another_style(
    tmp_path,
):
    some = setting(tmp_path)
    data = prepare_data(some, tmp_path)
    made = (data.labels).stat().st_mtime_ns
    assert prepare_data(some, tmp_path).labels.stat().st_mtime_ns == made
    line = data.tests['line']
    own, other = ((d.folder / d.ann_file).read_text() for d in (data.val, line))
    assert own == other and data.val.folder != line.folder
    assert not [*(line.folder / 'train').iterdir()]


def test_labels_are_drawn_per_seed_and_the_rest_has_no_instances(tmp_path):
    some = setting(tmp_path)
    data = prepare_data(some, tmp_path)
    first, second = (draw_labels(data, some, seed, tmp_path) for seed in (0, 1))
    assert len(ids(first)) == len(ids(second)) == 5 and ids(first) != ids(second)
    assert ids(first) | ids(rest_file(first)) == ids(data.labels)
    assert 'annotations' not in json.loads(rest_file(first).read_text())
    content = json.loads(first.read_text())
    assert {a['image_id'] for a in content['annotations']} == ids(first)
    whole = setting(tmp_path, labels=1.0)
    assert draw_labels(data, whole, 0, tmp_path) == data.labels


def test_digests_tell_which_part_of_the_data_differs(tmp_path):
    data = prepare_data(setting(tmp_path), tmp_path)
    other = prepare_data(
        setting(tmp_path, scenes=dict(SCENES, domain='flat')), tmp_path
    )
    first = data_digest(data, data.labels)
    assert set(first) == {'train', 'val', 'line'}
    second = data_digest(other, other.labels)
    # the annotations are the same, the pixels are not
    assert first['train'] != second['train'] and first['val'] != second['val']
    assert first['line'] == second['line']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(scenes=dict(domian='x')), r"s\.scenes: \['domian'\] are no arguments"),
        (dict(scenes=dict(domain='x')), "settings.s.scenes: unknown domain 'x'"),
        (dict(scenes=None, folder='/none'), 'settings.s.folder: /none is no folder'),
    ],
)
def test_data_that_cannot_be_had_is_named(tmp_path, changes, message):
    some = setting(tmp_path)
    if 'folder' in changes:
        changes = dict(changes, tests={})
    some = replace(some, **changes)
    with pytest.raises(InputError, match=message):
        prepare_data(some, tmp_path)


def test_a_config_is_pointed_at_other_data_wherever_it_names_its_own(tmp_path):
    cfg = Config(
        dict(
            data_root='data/shapes/',
            train_dataloader=dict(
                dataset=dict(
                    datasets=[
                        dict(
                            data_root='data/shapes/',
                            ann_file='annotations/instances_train.json',
                        ),
                        dict(ann_file='data/shapes/annotations/captions.json'),
                    ]
                )
            ),
            val_evaluator=dict(ann_file='data/shapes/annotations/instances_val.json'),
            other='data/shapes_too/x',
        )
    )
    data = SettingData(
        tmp_path, 'annotations/instances_train.json', EvaluationSet(tmp_path), {}
    )
    relocate(cfg, data, tmp_path / 'some.json')
    first, second = cfg.train_dataloader.dataset.datasets
    assert first.data_root == f'{tmp_path}/'
    assert first.ann_file == str(tmp_path / 'some.json')
    assert second.ann_file == f'{tmp_path}/annotations/captions.json'
    assert cfg.val_evaluator.ann_file == f'{tmp_path}/annotations/instances_val.json'
    assert cfg.other == 'data/shapes_too/x'


def test_the_schedule_is_scaled_to_the_iterations():
    cfg = Config(
        dict(
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=400),
            param_scheduler=[
                dict(type='LinearLR', by_epoch=False, begin=0, end=50),
                dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=400),
            ],
            default_hooks=dict(),
        )
    )
    set_length(cfg, 800, 100)
    warmup, decay = cfg.param_scheduler
    assert (warmup.begin, warmup.end, decay.begin, decay.end) == (0, 100, 100, 800)
    assert cfg.train_cfg.max_iters == 800 and cfg.train_cfg.val_interval == 100
    assert cfg.default_hooks.checkpoint.interval == 100


def test_a_schedule_in_epochs_becomes_one_in_iterations():
    cfg = Config(
        dict(
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=12),
            param_scheduler=[
                dict(type='LinearLR', by_epoch=False, begin=0, end=500),
                dict(type='MultiStepLR', by_epoch=True, end=12, milestones=[8, 11]),
            ],
            default_hooks=dict(logger=dict(type='LoggerHook', interval=50)),
        )
    )
    set_length(cfg, 1200, 100)
    warmup, decay = cfg.param_scheduler
    # a warm-up keeps its length, up to an eighth of the training
    assert warmup.end == 150 and decay.milestones == [800, 1100]
    assert decay.end == 1200 and not decay.by_epoch
    assert cfg.train_cfg.type == 'IterBasedTrainLoop'


def test_options_keep_tuples_and_those_of_the_harness_are_refused(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text('pipeline = [dict(scale=(1, 2)), dict(sizes=[1])]\n')
    cfg = load(str(path), [])
    apply(cfg, {'pipeline.0.scale': [3, 4], 'pipeline.1.sizes': [2], 'x.y': 1}, 'o')
    assert plain(cfg) == dict(
        pipeline=[dict(scale=(3, 4)), dict(sizes=[2])], x=dict(y=1)
    )
    with pytest.raises(InputError, match='train_cfg.max_iters: the harness sets it'):
        load(str(path), [{'train_cfg.max_iters': 1}])
    with pytest.raises(InputError, match='do not fit'):
        apply(cfg, {'pipeline.7.scale': 1}, 'arms.a.options')


def test_a_written_config_is_read_as_it_was(tmp_path):
    content = dict(a=(1, 2), b=[dict(c=None, d='x')], e=1e-4)
    write_config(content, tmp_path / 'c.py')
    assert plain(Config.fromfile(tmp_path / 'c.py')) == content


def test_digests_of_values_do_not_depend_on_folders_or_the_order_of_keys():
    first = value_digest(dict(a='/x/w/f', b=1), {'/x/w': 'WORK', '/x': 'REPO'})
    assert first == value_digest(dict(b=1, a='/y/f'), {'/y': 'WORK'})
    assert first != value_digest(dict(b=1, a='/y/g'), {'/y': 'WORK'})


def tiny_model(tmp_path):
    write_tiny_coco(tmp_path)
    (tmp_path / 'tiny.py').write_text(tiny_config_text(tmp_path))
    return plain(Config.fromfile(tmp_path / 'tiny.py'))['model']


def test_start_weights_depend_on_the_seed_and_not_on_the_teacher(tmp_path):
    model = tiny_model(tmp_path)
    without = {k: v for k, v in model.items() if k not in ('teacher', 'distiller')}
    path = write_start(model, 0, tmp_path / 'a')
    again = write_start(without, 0, tmp_path / 'b')
    other = write_start(model, 1, tmp_path / 'a')
    assert path.name == again.name != other.name
    first, same, different = (
        weights_digest(torch.load(p)['state_dict']) for p in (path, again, other)
    )
    assert first == same != different
    init_default_scope('mmdet')
    names = MODELS.build(Config(dict(m=without)).m).state_dict().keys()
    assert torch.load(path)['state_dict'].keys() == names


def test_start_weights_are_written_once(tmp_path):
    model = tiny_model(tmp_path)
    made = write_start(model, 0, tmp_path).stat().st_mtime_ns
    assert write_start(model, 0, tmp_path).stat().st_mtime_ns == made


@pytest.mark.parametrize('name', ['shapes', 'lfi-mixed_shapes'])
def test_images_without_labels_do_not_make_a_batch_larger(name):
    cfg = Config.fromfile(ROOT / f'configs/lfi/mask-rcnn_vit-mini_{name}.py')
    assert labelled_batch(cfg.train_dataloader) == 8
