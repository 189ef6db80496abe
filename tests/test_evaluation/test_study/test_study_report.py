"""What the report takes, refuses and says."""

import json

import pytest

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation.study.pairing import PairingError
from lfi_mmdet.evaluation.study.report import make_report, write_report
from lfi_mmdet.evaluation.study.tables import markdown

from .lines import plan, run, write


def both(path, head=None, **changes):
    """Two pairs, the arm's second run with changes."""
    return write(
        path,
        head or plan(),
        run('twin', 0),
        run('twin', 1),
        run('lfi', 0, {10: 0.2, 20: 0.3}),
        run('lfi', 1, {10: 0.2, 20: 0.25}, **changes),
    )


def report(tmp_path, *parts):
    return make_report([write(tmp_path / 'results.jsonl', *parts)])


def test_means_differences_and_iterations_are_those_of_the_pairs(tmp_path):
    found = make_report([both(tmp_path / 'r.jsonl')])
    arm = found['settings']['s']['arms']['lfi']
    assert arm['metrics']['val']['segm_mAP']['mean'] == pytest.approx(27.5)
    difference = arm['minus_twin']['val']['segm_mAP']
    assert difference['by_seed'] == {'0': pytest.approx(10), '1': pytest.approx(5)}
    assert difference['mean'] == pytest.approx(7.5)
    assert difference['bootstrap'] == [pytest.approx(5), pytest.approx(10)]
    race = arm['convergence']
    # the mean of the arm is at 0.2 after 10 iterations, that of the twin after 20
    assert race['target'] == pytest.approx(20) and race['ratio'] == pytest.approx(0.5)
    assert race['reached_by'] == 2


def test_pretraining_is_added_to_the_iterations(tmp_path):
    head = plan()
    head['arms']['lfi']['pretrain_iters'] = 30
    found = make_report([both(tmp_path / 'r.jsonl', head)])
    race = found['settings']['s']['arms']['lfi']['convergence']
    assert race['ratio'] == pytest.approx(0.5)
    assert race['ratio_with_pretrain'] == pytest.approx(2.0)
    assert '0.50 / 2.00 (10 it.; 2 of 2 seeds)' in markdown(found)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(iterations=40), r'iterations: 40, the twin has 20'),
        (
            dict(points=[5, 20]),
            r'evaluated at iterations: \[5, 20\], the twin has \[10',
        ),
        (dict(batch_size=8), r'labelled images of a batch \(.*\): 8, the twin has 4'),
        (
            dict(data_hash=dict(train='e' * 64, val='v' * 64)),
            r'data, train \(sha256\): e{12}, the twin has d{12}',
        ),
        (
            dict(start_weights_hash='f' * 64),
            r'start weights \(sha256\): f{12}, the twin',
        ),
        (dict(order_hash='p' * 64), 'order of the labelled images.*own_order: true'),
        (dict(labelled_images_seen=40), 'labelled images seen .*: 40, the twin has 80'),
        (dict(schedule_hash='p' * 64), 'learning-rate schedule.*own_schedule: true'),
    ],
)
def test_an_arm_that_does_not_match_its_twin_is_refused(tmp_path, changes, message):
    path = both(tmp_path / 'r.jsonl', **changes)
    with pytest.raises(PairingError, match=message) as caught:
        make_report([path])
    assert 's/lfi/seed1 does not match its twin s/twin/seed1' in str(caught.value)


def test_a_seed_that_the_twin_never_has_is_refused(tmp_path):
    head = plan()
    head['runs'] = [r for r in head['runs'] if r['id'] != 's/twin/seed1']
    with pytest.raises(
        PairingError, match=r'arm lfi has seed 1, its twin twin has \[0\]'
    ):
        report(tmp_path, head, run('twin', 0), run('lfi', 0), run('lfi', 1))


@pytest.mark.parametrize(
    ('flag', 'changes'),
    [
        (
            'own_order',
            dict(order_hash='p' * 64, labelled_images_seen=40, batch_size=8),
        ),
        ('own_schedule', dict(schedule_hash='p' * 64)),
    ],
)
def test_what_the_study_allows_is_taken_and_noted(tmp_path, flag, changes):
    head = plan()
    head['arms']['lfi'][flag] = True
    found = make_report([both(tmp_path / 'r.jsonl', head, **changes)])
    assert 'of its own' in found['settings']['s']['arms']['lfi']['notes'][0]


def test_runs_whose_start_weights_another_processor_drew_are_not_compared(tmp_path):
    other = dict(start_weights_hash='f' * 64, machine=dict(cpu='other', gpu=None))
    head = plan(bars=[dict(BAR, at_least=1.0), dict(BAR, metric='iterations_ratio')])
    found = make_report([both(tmp_path / 'r.jsonl', head, **other)])
    arm = found['settings']['s']['arms']['lfi']
    assert arm['finished'] == 2 and arm['metrics']['val']['segm_mAP']['n'] == 2
    assert list(arm['minus_twin']['val']['segm_mAP']['by_seed']) == ['0']
    assert arm['convergence']['n'] == 1
    why = (
        'lfi, seeds 1: start weights differ from those of twin, which another '
        'processor drew; not compared'
    )
    assert why in arm['notes']
    for bar in found['bars']:
        assert bar['verdict'] == 'cannot be told' and bar['why'] == [why]


@pytest.mark.parametrize(
    ('fed', 'told'), [({'stages/pre': 'a'}, 1), ({'stages/pre': 'b'}, 0), ({}, 0)]
)
def test_a_run_fed_by_weights_that_no_stage_has_any_more_is_named(tmp_path, fed, told):
    def stage(weights, **changes):
        line = run('lfi', 0, {}, kind='stage', id='stages/pre', **changes)[-1]
        return dict(line, final=True, weights_sha256=weights)

    found = report(
        tmp_path,
        plan(),
        stage('a', superseded=True),
        stage('b'),
        *(run(arm, seed) for arm, seed in [('twin', 0), ('twin', 1), ('lfi', 1)]),
        run('lfi', 0, fed_weights=fed),
    )
    notes = ' '.join(found['settings']['s']['arms']['lfi']['notes'])
    assert notes.count('seed 0 was fed by an earlier training of stages/pre') == told


def test_every_start_of_a_resumed_run_is_named_with_its_own_state(tmp_path):
    starts = [dict(commit='1', dirty=True), dict(commit='2', dirty=False)]
    changes = dict(commit='2', dirty=True, starts=starts)
    found = make_report([both(tmp_path / 'r.jsonl', plan(), **changes)])
    named = [c for c in found['provenance']['commits'] if c['commit'] in '12']
    assert named == starts


def test_a_diverged_run_is_shown_with_its_reason_and_leaves_its_pair_out(tmp_path):
    path = both(
        tmp_path / 'r.jsonl',
        status='diverged',
        order_hash=None,
        labelled_images_seen=None,
    )
    found = make_report([path])
    arm = found['settings']['s']['arms']['lfi']
    assert (arm['finished'], arm['diverged'], arm['planned']) == (1, 1, 2)
    assert arm['minus_twin']['val']['segm_mAP']['n'] == 1
    text = markdown(found)
    assert '| LFI | 1/2, 1 diverged | 1 |' in text
    assert 'LFI, seed 1: diverged at iteration 15: no luck' in text


def test_a_run_that_failed_before_it_began_is_shown(tmp_path):
    failed = run(
        'lfi', 0, {}, status='failed', start_weights_hash=None, start_weights=None,
        order_hash=None, labelled_images_seen=None, cpu_threads=None, versions=None,
    )  # fmt: skip
    text = markdown(report(tmp_path, plan(), run('twin', 0), run('twin', 1), failed))
    assert '| LFI | 0/2, 1 failed | 0 | – |' in text


def test_an_earlier_attempt_is_shown(tmp_path):
    old = [dict(line, superseded=True) for line in run('lfi', 0, {}, status='failed')]
    found = report(tmp_path, plan(seeds=[0]), run('twin', 0), old, run('lfi', 0))
    assert 'LFI, seed 0: an earlier attempt failed (no luck)' in markdown(found)
    assert found['settings']['s']['arms']['lfi']['finished'] == 1


BAR = dict(
    name='b', arms=['lfi', 'twin'], setting='s', metric='segm_mAP', test='val',
    at_least=None, at_most=None, interval=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ('asked', 'verdict'),
    [
        (dict(at_least=7.0), 'met'),
        (dict(at_least=8.0), 'missed'),
        (dict(metric='iterations_ratio', at_most=0.5), 'met'),
        (dict(metric='iterations_ratio', at_most=0.4), 'missed'),
    ],
)
def test_a_bar_is_met_or_missed(tmp_path, asked, verdict):
    head = plan(bars=[dict(BAR, **asked)])
    found = make_report([both(tmp_path / 'r.jsonl', head)])
    (bar,) = found['bars']
    assert bar['verdict'] == verdict and bar['n'] == 2


def intervals(tmp_path, gains, **asked):
    """The bar on so many pairs, whose twins end at 20."""
    seeds = range(len(gains))
    pairs = [
        [*run('twin', s), *run('lfi', s, {10: 0.1, 20: 0.2 + gain})]
        for s, gain in zip(seeds, gains)
    ]
    head = plan(seeds=seeds, bars=[dict(BAR, **asked)])
    return report(tmp_path, head, *pairs)['bars'][0]


@pytest.mark.parametrize(
    ('asked', 'verdict'),
    [
        (dict(at_least=3.0, interval='above_zero'), 'met'),
        (dict(at_least=4.0, interval='above_zero'), 'missed'),
        (dict(interval='covers_zero'), 'missed'),
    ],
)
def test_the_interval_of_five_pairs_decides(tmp_path, asked, verdict):
    bar = intervals(tmp_path, [0.01, 0.02, 0.03, 0.04, 0.05], **asked)
    assert (bar['verdict'], bar['n'], bar['why']) == (verdict, 5, [])


def test_a_bar_says_where_the_other_interval_differs(tmp_path):
    # 4.8 +- 2.8 * 8.5 / sqrt(5)
    bar = intervals(tmp_path, [0.2, 0.01, 0.01, 0.01, 0.01], interval='above_zero')
    assert bar['verdict'] == 'met'
    assert bar['why'] == ["Student's t interval says otherwise"]


@pytest.mark.parametrize('count', [1, 2, 4])
def test_the_interval_of_fewer_than_five_pairs_decides_nothing(tmp_path, count):
    bar = intervals(tmp_path, [0.1] * count, interval='above_zero')
    assert bar['verdict'] == 'cannot be told'
    assert bar['why'] == [f'an interval takes 5 pairs; there are {count}']


@pytest.mark.parametrize(('test', 'value'), [('a+b', 15.0), ('a', 10.0), ('a+c', None)])
def test_a_bar_on_several_sets_is_on_their_mean(tmp_path, test, value):
    def end(arm, a, b):
        line = run(arm, 0, {20: 0.0})[0]
        sets = {k: dict(segm_mAP=v, bbox_mAP=v) for k, v in (('a', a), ('b', b))}
        return dict(line, metrics={**line['metrics'], **sets})

    head = plan(seeds=[0], bars=[dict(BAR, test=test, at_least=15.0)])
    found = report(tmp_path, head, end('twin', 0.1, 0.3), end('lfi', 0.2, 0.5))
    (bar,) = found['bars']
    assert bar['value'] == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ('last', 'why'),
    [
        ([], 'lfi: 1 of 2 runs not finished'),
        (run('lfi', 1, {}, status='diverged'), 'lfi: 1 of 2 runs diverged'),
    ],
)
def test_a_bar_cannot_be_told_before_all_runs_have_finished(tmp_path, last, why):
    head = plan(bars=[dict(BAR, at_least=1.0), dict(BAR, metric='iterations_ratio')])
    parts = run('twin', 0), run('twin', 1), run('lfi', 0), last
    for bar in report(tmp_path, head, *parts)['bars']:
        assert bar['verdict'] == 'cannot be told' and bar['why'] == [why]


def test_a_twin_that_ends_at_nothing_is_no_mark_to_reach(tmp_path):
    head = plan(seeds=[0], bars=[dict(BAR, metric='iterations_ratio', at_most=1)])
    flat = {10: 0.0, 20: 0.0}
    found = report(tmp_path, head, run('twin', 0, flat), run('lfi', 0))
    assert found['bars'][0]['why'] == ['the twin ends at 0']
    assert 'the twin ends at 0' in markdown(found)


def test_the_best_of_a_group_is_chosen_on_seeds_that_count_for_nothing_else(tmp_path):
    arms = ('twin', 'a', 'b')
    head = plan(arms, (7, 0, 1), selection_seeds=[7], groups=dict(g=['a', 'b']))
    head['compare'] = [dict(arms=['best of g', 'twin'], settings=[])]
    parts = [run('twin', seed) for seed in (0, 1, 7)]
    # b is better where it is chosen, and worse where it is measured
    parts += [run('a', seed, {10: 0.1, 20: 0.5}) for seed in (0, 1)]
    parts += [run('b', seed, {10: 0.1, 20: 0.3}) for seed in (0, 1)]
    parts += [run('a', 7, {10: 0.1, 20: 0.1}), run('b', 7, {10: 0.1, 20: 0.2})]
    found = report(tmp_path, head, *parts)
    (item,) = found['comparisons']
    assert item['chosen'] == ['b', 'twin'] and item['pending'] == []
    assert item['metrics']['val']['segm_mAP']['mean'] == pytest.approx(10)
    assert found['settings']['s']['arms']['b']['seeds'] == [0, 1]
    assert 'best of g (b) minus twin' in markdown(found)


def chosen_from(tmp_path, last):
    arms = ('twin', 'lfi', 'a', 'b')
    head = plan(arms, (7, 0), selection_seeds=[7], groups=dict(g=['a', 'b']))
    head['bars'] = [dict(BAR, arms=['lfi', 'best of g'], at_least=1.0)]
    parts = [run(arm, seed) for arm in ('twin', 'a') for seed in (0, 7)]
    parts += [run('lfi', 0, {10: 0.1, 20: 0.5}), run('b', 0, {10: 0.1, 20: 0.9})]
    return report(tmp_path, head, *parts, last)


@pytest.mark.parametrize(
    ('last', 'state'), [([], 'not finished'), (run('b', 7, {}, 'failed'), 'failed')]
)
def test_a_bar_waits_for_all_that_could_be_the_best(tmp_path, last, state):
    (bar,) = chosen_from(tmp_path, last)['bars']
    assert bar['verdict'] == 'cannot be told'
    assert bar['why'] == [f'best of g: b, seed 7 {state}']


def test_runs_that_were_chosen_by_are_shown_and_the_diverged_ones_too(tmp_path):
    found = chosen_from(tmp_path, run('b', 7, {}, 'diverged'))
    assert found['bars'][0]['chosen'] == ['lfi', 'a']
    assert found['bars'][0]['verdict'] == 'met'
    text = markdown(found)
    assert '| A | 7 | 40.0 | 20.0 | best of its group | finished |' in text
    assert '| B | 7 | – | – | – | diverged (no luck) |' in text
    assert '| LFI | 7 | – | – | – | not finished |' in text


def test_runs_of_one_arm_with_different_recipes_are_refused(tmp_path):
    parts = [run('twin', 0), run('twin', 1), run('lfi', 0, recipe_hash='a' * 64)]
    report(tmp_path, plan(), *parts, run('lfi', 1))  # one that tells none
    with pytest.raises(PairingError, match='s/lfi/seed1 and s/lfi/seed0 .*bbbb'):
        report(tmp_path, plan(), *parts, run('lfi', 1, recipe_hash='b' * 64))


def test_parts_of_different_study_files_are_refused(tmp_path):
    first = write(tmp_path / 'a.jsonl', plan(), run('twin', 0))
    second = write(tmp_path / 'b.jsonl', plan(command=['x']), run('twin', 1))
    make_report([first, second])
    write(second, plan(seeds=(0, 1, 2)), run('twin', 1))
    with pytest.raises(InputError, match='b.jsonl: its study file was another'):
        make_report([first, second])


def test_parts_of_a_study_from_two_machines_are_put_together(tmp_path):
    first = write(tmp_path / 'a.jsonl', plan(), run('twin', 0), run('lfi', 0))
    second = write(tmp_path / 'b.jsonl', plan(), run('twin', 1), run('lfi', 1))
    found = make_report([first, second])
    assert found['runs'] == dict(planned=4, finished=4)
    write(second, plan(), run('lfi', 0, {10: 0.9, 20: 0.9}))
    with pytest.raises(InputError, match='run s/lfi/seed0 is in .*a.jsonl and in .*b'):
        make_report([first, second])
    write(second, dict(plan(), study='other'))
    with pytest.raises(InputError, match='results of two studies, test and other'):
        make_report([first, second])


def test_a_cut_line_and_runs_of_a_deleted_arm_do_not_count(tmp_path):
    path = both(tmp_path / 'r.jsonl')
    path.write_text(path.read_text() + json.dumps(run('old', 0)[-1]) + '\n{"kind": "ru')
    found = make_report([path])
    assert found['runs'] == dict(planned=4, finished=4)
    assert found['left_out'] == ['s/old/seed0']
    assert 'Left out' in markdown(found)


@pytest.mark.parametrize('content', ['', 'no json\n', '{"a": 1}\n'])
def test_files_that_are_no_results_are_named(tmp_path, content):
    (tmp_path / 'x.jsonl').write_text(content)
    with pytest.raises(InputError, match='x.jsonl: no line of kind plan'):
        make_report([tmp_path / 'x.jsonl'])
    with pytest.raises(InputError, match='none.jsonl: no such file'):
        make_report([tmp_path / 'none.jsonl'])


def test_table_json_and_plot_are_written(tmp_path):
    found = make_report([both(tmp_path / 'r.jsonl')], ['tools/report.py', 'r.jsonl'])
    written = write_report(found, tmp_path / 'out')
    names = ['report.md', 'report.json', 'convergence_s.png']
    assert [path.name for path in written] == names
    text = (tmp_path / 'out' / 'report.md').read_text()
    assert '![Convergence](convergence_s.png)' in text
    assert 'python tools/study.py test.yaml\npython tools/report.py r.jsonl' in text
    assert '| TWIN | 2/2 | 2 | 40.0 ± 0.0 | – | 20.0 ± 0.0 | – | – | – |' in text
    assert '+7.5 (+5.0 to +10.0; t -24.3 to +39.3) | 0.5 | 0.50 (10 it.; 2 of 2' in text
    told = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert told['settings']['s']['arms']['lfi']['curves']['segm_mAP']['20'] == 27.5


def test_a_study_without_a_finished_run_has_a_report_without_a_plot(tmp_path):
    found = report(tmp_path, plan())
    assert len(write_report(found, tmp_path / 'out')) == 2
    assert '0 of 4 runs finished' in (tmp_path / 'out' / 'report.md').read_text()
