"""Each variant is measured as it asks for, against the twin in the same turn."""

import pytest

from lfi_mmdet.evaluation import (
    Benchmark,
    Setting,
    Spread,
    Variant,
    benchmark,
    build_subjects,
)

PLAIN = {'model.backbone.num_queries': 0}


@pytest.fixture
def run(tiny_config):
    def run(measures, variants, **kwargs):
        path = tiny_config.filename
        subjects = build_subjects(
            Variant('twin', path, 'none', measures, options=PLAIN),
            [Variant(name, path, *rest) for name, *rest in variants],
            Setting(shape=(64, 64)),
        )
        return subjects, Benchmark(subjects, **kwargs).run()

    return run


def test_ratios_are_to_the_twin_and_only_what_is_asked_for_is_measured(run):
    measures = ('inference', 'inference_memory', 'train_step', 'train_memory')
    subjects, results = run(
        measures,
        [('a', 'none', measures[:2]), ('b', 'cached', measures[2:])],
        repeat=2,
        warmup=0,
    )
    twin, a, b = results
    assert set(twin) == set(measures)
    assert set(a) == set(measures[:2]) and set(b) == set(measures[2:])
    for name, kind in zip(measures, ('seconds', 'bytes') * 2):
        assert 'ratio' not in twin[name]
        for result in (a, b):
            if name in result:
                pairs = zip(result[name][kind]['values'], twin[name][kind]['values'])
                expected = [mine / theirs for mine, theirs in pairs]
                assert result[name]['ratio']['values'] == pytest.approx(expected)
                assert len(expected) == 2
    # modes and thresholds are as before
    for subject in subjects:
        assert subject.model.rpn_head.test_cfg.nms.iou_threshold == 0.7


def test_all_do_the_same_work_and_it_is_told(run):
    measures = ('flops', 'inference', 'train_step')
    _, (twin, lfi) = run(measures, [('lfi', 'online', measures)], repeat=1, warmup=0)
    for name in measures:
        assert twin[name]['work'] == lfi[name]['work']
    assert twin['inference']['work'] == dict(boxes=10, masks=10)
    assert twin['train_step']['work']['boxes'] == 8
    assert lfi['flops']['total'] - twin['flops']['total'] == lfi['flops']['interaction']


def test_a_step_of_several_is_timed_as_one(tiny_config, monkeypatch):
    path, measures = tiny_config.filename, ('train_step',)
    schedule = {'model.distiller.schedule': dict(interval=3)}
    subjects = build_subjects(
        Variant('twin', path, 'none', measures, options=PLAIN),
        [Variant('third', path, 'online', measures, options=schedule)],
        Setting(shape=(64, 64)),
    )
    times = [Spread([6.0]), Spread([9.0])]
    monkeypatch.setattr(benchmark, 'time_in_turns', lambda *args, **kwargs: times)
    twin, third = Benchmark(subjects, repeat=1, warmup=0).run()
    assert twin['train_step']['steps_per_run'] == 3
    assert third['train_step']['seconds']['values'] == [3.0]
    assert third['train_step']['ratio']['median'] == 1.5
    assert twin['train_step']['work']['boxes'] == 8


def test_memory_is_what_stays_and_the_peak_above_it(run):
    measures = ('inference_memory', 'train_memory')
    subjects, results = run(measures, [('lfi', 'online', measures)], repeat=5, warmup=0)
    for subject, result in zip(subjects, results):
        weights = sum(4 * p.numel() for p in subject.model.parameters())
        inference, training = (result[name] for name in measures)
        assert weights < inference['resident_bytes'] < inference['bytes']['low']
        # the optimizer has its two moments before the first peak is taken
        assert 3 * weights < training['resident_bytes'] < training['bytes']['low']
        assert len(training['bytes']['values']) == Benchmark.MEMORY_RUNS


def test_without_feedback_the_interaction_is_not_exported(run, tiny_config):
    path, measures = tiny_config.filename, ('parameters',)
    plain = {'model.backbone.feedback': False}
    subjects = build_subjects(
        Variant('twin', path, 'none', measures, options=PLAIN),
        [
            Variant('feedback', path, 'none', measures),
            Variant('without', path, 'none', measures, options=plain),
        ],
        Setting(shape=(64, 64)),
    )
    counts = [result['parameters'] for result in Benchmark(subjects).run()]
    twin, feedback, without = counts
    assert twin['total'] == twin['exported'] == without['exported']
    assert feedback['exported'] == feedback['total'] > without['total'] > twin['total']


def test_pipelines_and_checkpoints_are_measured_too(run):
    measures = ('checkpoint', 'loader')
    _, (twin, lfi) = run(
        measures, [('lfi', 'online', measures)], images=2, transform='Resize'
    )
    assert lfi['checkpoint']['teacher'] == 0 < lfi['checkpoint']['interaction']
    assert lfi['loader']['images'] == 2 and 0 < lfi['loader']['share'] < 1
    assert lfi['loader']['transform'] == twin['loader']['transform'] == 'Resize'
