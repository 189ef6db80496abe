"""tools/benchmark.py, from command line to report."""

import json

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config

from lfi_mmdet.engine.caching import cache_targets
from lfi_mmdet.engine.caching_options import CachingOptions
from lfi_mmdet.engine.preflight import InputError
from tests.test_tools.conftest import load_tool
from tests.tiny import tiny_config_text, write_tiny_coco

SMALL = ['--shape', '64', '64', '--repeat', '2', '--warmup', '0']
benchmark = load_tool('benchmark')


@pytest.fixture(scope='module')
def configs(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp('benchmark')
    write_tiny_coco(root)
    (root / 'lfi.py').write_text(tiny_config_text(root))
    (root / 'plain.py').write_text(
        "_base_ = './lfi.py'\n"
        'model = dict(teacher=None, backbone=dict(num_queries=0))\n'
    )
    return [str(root / 'plain.py'), str(root / 'lfi.py')]


def test_costs_stand_side_by_side_in_table_and_report(configs, tmp_path, capsys):
    out = tmp_path / 'benchmark.json'
    arguments = [*configs, *SMALL, '--out', str(out), '--batch-size', '2']
    arguments += ['--variant', 'feedback', 'measure=parameters,flops,inference']
    arguments += ['--variant', 'apart', 'model.backbone.feedback=False']
    arguments += ['--variant', 'online', 'targets=online', 'measure=train_step']
    assert benchmark.main([*arguments, '--measure', 'parameters']) == 0
    report = json.loads(out.read_text())
    twin, feedback, apart, online = report['models']
    cfg = Config.fromfile(configs[1]).model
    cfg.teacher = None
    expected = sum(p.numel() for p in MODELS.build(cfg).parameters())
    assert feedback['parameters']['total'] == expected
    more = expected - twin['parameters']['total']
    assert feedback['parameters']['interaction'] == more > 0
    assert apart['parameters']['exported'] == twin['parameters']['total']
    assert online['targets'] == 'online' and online['teacher']['grid_size'] == 8
    assert online['train_step']['ratio']['median'] > 0 and 'inference' not in online
    assert len(feedback['inference']['seconds']['values']) == 2
    # what it takes to measure it again
    assert report['shape'] == [64, 64] and report['batch_size'] == 2
    assert (report['objects_per_image'], report['classes_per_image']) == (7, 3)
    assert report['device'] == 'cpu' and report['seed'] == 0 and report['repeat'] == 2
    assert apart['options'] == {'model.backbone.feedback': False}
    assert {'torch', 'mmdet', 'open_clip_torch'} <= set(report['versions'])
    shown = capsys.readouterr().out
    assert f'{more / twin["parameters"]["total"]:+.2%}' in shown
    for text in ('training step, ms', 'GFLOPs', 'apart', 'torchvision::roi_align'):
        assert text in shown
    assert f'x {online["train_step"]["ratio"]["median"]:.4g} (' in shown


def test_the_twin_is_measured_in_all_that_a_variant_is(configs):
    arguments = [*configs, '--measure', 'flops', '--compile', 'backbone.blocks']
    arguments += ['--variant', 'a', 'measure=train_step,inference', '--variant', 'b']
    args = benchmark.build_parser().parse_args(arguments)
    twin, a, b = benchmark.read_variants(args)
    assert twin.measures == ('flops', 'inference', 'train_step')
    assert a.config == b.config == configs[1] and b.measures == ('flops',)
    assert twin.compile == a.compile == 'backbone.blocks'


def test_without_a_variant_the_student_of_the_second_config_is_measured(configs):
    args = benchmark.build_parser().parse_args(configs)
    twin, lfi = benchmark.read_variants(args)
    assert (twin.name, lfi.name, lfi.targets) == ('twin', 'lfi', 'none')
    assert lfi.measures == twin.measures == ('parameters', 'flops', 'inference')


def test_two_variants_of_one_name_are_refused(configs):
    arguments = [*configs, '--variant', 'twin']
    with pytest.raises(InputError, match="two variants have the name 'twin'"):
        benchmark.main(arguments)


def test_stored_targets_are_timed_in_the_pipeline_that_reads_them(configs, tmp_path):
    store, out = tmp_path / 'store', tmp_path / 'benchmark.json'
    cached = tmp_path / 'cached.py'
    cached.write_text(
        f'_base_ = {configs[1]!r}\nstore = {str(store)!r}\n'
        'model = dict(teacher=dict(_delete_=True, type="CachedTeacher", store=store,\n'
        '    teacher=_base_.model.teacher))\n'
        'pipeline = [*_base_.train_pipeline[:-1],\n'
        '    dict(type="LoadCachedTargets", store=store),\n'
        '    dict(type="PackInteractionInputs")]\n'
        'train_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
    )
    cache_targets(Config.fromfile(cached), CachingOptions(out=str(store)))
    arguments = [*configs, *SMALL, '--out', str(out), '--images', '3']
    arguments += ['--variant', 'cached', 'targets=cached', f'config={cached}']
    benchmark.main([*arguments, '--measure', 'train_step', 'loader', 'checkpoint'])
    twin, cached = json.loads(out.read_text())['models']
    assert cached['teacher']['type'] == 'GroundTruthTeacher'
    assert 0 < cached['loader']['share'] < 1 and twin['loader']['share'] is None
    names = [row['name'] for row in cached['loader']['transforms']]
    assert names[-2:] == ['LoadCachedTargets', 'PackInteractionInputs']
    assert cached['checkpoint']['teacher'] == 0
    assert cached['train_step']['work'] == twin['train_step']['work']


def test_unequal_work_is_remarked():
    def subject(name):
        variant = type('Variant', (), dict(name=name))
        return type('Subject', (), dict(variant=variant))

    def result(boxes):
        return dict(train_step=dict(work=dict(boxes=boxes)))

    subjects = [subject('twin'), subject('lfi')]
    assert benchmark.remarks(subjects, [result(5), result(5)]) == []
    (remark,) = benchmark.remarks(subjects, [result(5), result(6)])
    assert 'train_step: the RoI heads did not do the same work' in remark
    assert "'lfi': {'boxes': 6}" in remark


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--repeat', '0'], '--repeat 0 is less than 1'),
        (['--batch-size', '0'], '--batch-size 0 is less than 1'),
        (['--positives', '-1'], '--positives -1 is less than 0'),
        (['--warmup', '-1'], '--warmup -1 is less than 0'),
        (['--threads', '-1'], '--threads -1 is less than 1'),
        (['--measure', 'speed'], "invalid choice: 'speed'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(flags, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(['nowhere.py', 'nowhere.py', *flags])
    assert message in capsys.readouterr().err


def test_another_device_than_training_would_take_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, 'get_device', lambda: 'cuda')
    with pytest.raises(SystemExit):
        benchmark.main(['nowhere.py', 'nowhere.py', '--device', 'cpu'])
    assert 'set CUDA_VISIBLE_DEVICES= to measure' in capsys.readouterr().err
    monkeypatch.setattr(benchmark, 'get_device', lambda: 'cpu')
    with pytest.raises(SystemExit):
        benchmark.main(['nowhere.py', 'nowhere.py', '--device', 'cuda'])
    assert '--device cuda: there is none' in capsys.readouterr().err
