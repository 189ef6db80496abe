"""Runs that are killed, diverge, crash and wait for one another."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from lfi_mmdet.engine.hooks.paired_start_hook import weights_digest
from lfi_mmdet.evaluation.study import executor as executor_module
from lfi_mmdet.evaluation.study.executor import Stopped, slots
from lfi_mmdet.evaluation.study.process import Busy, end_leftovers, lock

from .fakes import (
    ONE,
    diary,
    executor,
    fake_task,
    install,
    lines,
    run_in_background,
    wait_for,
)


@pytest.fixture(autouse=True)
def trainer(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)


def finish(root, *tasks):
    """Start the study again and again, as its user would, until it comes to an end."""
    for _ in range(10):
        try:
            return executor(root, *tasks).run(ONE)
        except Stopped:
            continue
    raise AssertionError('no end')


def check_complete(root, task):
    """Every evaluation once, in order, with the right value."""
    own = [line for line in lines(root) if line['id'] == task.id]
    assert [line['iteration'] for line in own] == task.points
    assert [line['metrics']['val']['segm_mAP'] for line in own] == [
        step / 100 for step in task.points
    ]
    assert [line.get('final', False) for line in own] == [False] * (len(own) - 1) + [
        True
    ]
    assert {line['status'] for line in own} == {'finished'}


def test_a_run_leaves_one_line_per_evaluation_and_no_checkpoints(tmp_path):
    task = fake_task(tmp_path, iterations=5)
    assert executor(tmp_path, task).run(ONE) == {task.id: 'finished'}
    check_complete(tmp_path, task)
    assert task.points == [2, 4, 5]
    assert not [*task.folder.glob('*.pth')]
    (line,) = [line for line in lines(tmp_path) if line.get('final')]
    assert line['machine']['cores'] and len(line['commit'] or 40 * 'x') == 40
    assert line['config_hash'] == task.digest and line['start_weights_hash'] == 's'


def test_progress_fills_no_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(executor_module, '_LOG', 1e9)
    executor(
        tmp_path, *(fake_task(tmp_path, name=f's/a/seed{i}') for i in range(3))
    ).run(ONE)
    shown = capsys.readouterr().err
    assert 0 < shown.count('study:') <= 3
    assert '100%' in shown.rsplit('study:', 1)[1]


@pytest.mark.parametrize(
    ('point', 'begins_again_at'),
    [
        ('train1', 0),
        ('write2', 0),  # the file is only half there
        ('saved2', 0),  # the evaluation is missing and would not be made up for
        ('evaluated2', 2),
        ('train3', 2),
        ('saved4', 2),
        ('evaluated4', 4),
        ('end', None),
    ],
)
def test_a_run_that_is_stopped_anywhere_goes_on_and_repeats_nothing(
    tmp_path, point, begins_again_at
):
    task = fake_task(tmp_path, deaths=(point,))
    finish(tmp_path, task)
    check_complete(tmp_path, task)
    starts = [text for text in diary(task) if text.startswith('start')]
    expected = [] if begins_again_at is None else [f'start {begins_again_at}']
    assert starts == ['start 0', *expected]


def test_a_finished_run_is_not_started_again(tmp_path):
    task = fake_task(tmp_path)
    executor(tmp_path, task).run(ONE)
    before = (tmp_path / 'results.jsonl').read_bytes()
    executor(tmp_path, task).run(ONE)
    assert (tmp_path / 'results.jsonl').read_bytes() == before
    assert diary(task).count('start 0') == 1


@pytest.mark.parametrize('cut', [1, 40, 400])
def test_a_run_whose_last_line_was_cut_off_is_made_up_for(tmp_path, cut):
    first, second = (fake_task(tmp_path, f's/a/seed{i}') for i in (0, 1))
    executor(tmp_path, first).run(ONE)
    path = tmp_path / 'results.jsonl'
    executor(tmp_path, second).run(ONE)
    path.write_bytes(path.read_bytes()[:-cut])
    executor(tmp_path, first, second).run(ONE)
    check_complete(tmp_path, first)
    check_complete(tmp_path, second)
    assert diary(first).count('start 0') == 1


def test_a_diverged_run_is_recorded_and_never_tried_again(tmp_path):
    task = fake_task(tmp_path, error='nan', interval=1)
    for _ in range(2):
        assert executor(tmp_path, task).run(ONE) == {task.id: 'diverged'}
    (evaluated, end) = lines(tmp_path)
    assert evaluated['iteration'] == 1 and evaluated['metrics']['val']
    assert end['final'] and end['iteration'] == 2 and end['metrics'] == {}
    assert end['status'] == evaluated['status'] == 'diverged'
    assert end['reason'] == 'loss NaN'
    assert diary(task).count('start 0') == 1


@pytest.mark.parametrize(
    ('behaviour', 'reason'),
    [
        (dict(error='crash'), 'exit code 1: error: no such luck'),
        (
            dict(deaths=('train3',), killed=True),
            'ended by signal 9, perhaps out of memory',
        ),
    ],
)
def test_a_crashed_run_is_recorded_and_the_others_go_on(tmp_path, behaviour, reason):
    bad = fake_task(tmp_path, 's/bad/seed0', **behaviour)
    good = fake_task(tmp_path, 's/good/seed0')
    states = executor(tmp_path, bad, good).run(ONE)
    assert states == {bad.id: 'failed', good.id: 'finished'}
    (end,) = [line for line in lines(tmp_path) if line['id'] == bad.id][-1:]
    assert end['status'] == 'failed' and end['reason'] == reason


def test_a_stage_runs_once_before_all_that_need_it_and_is_cleared_away(tmp_path):
    stage = fake_task(tmp_path, 'stages/pre/seed0', stage=True)
    users = [fake_task(tmp_path, f's/{n}/seed0', needs=(stage,)) for n in 'ab']
    three = [dict(OMP_NUM_THREADS='1')] * 3
    states = executor(tmp_path, stage, *users).run(three)
    assert set(states.values()) == {'finished'}
    assert diary(stage).count('start 0') == 1
    assert [line['id'] for line in lines(tmp_path)][0] == stage.id
    assert not stage.checkpoint.exists()
    # one that is added later needs it again
    late = fake_task(tmp_path, 's/c/seed0', needs=(stage,))
    executor(tmp_path, stage, *users, late).run(three)
    assert diary(stage).count('start 0') == 2
    check_complete(tmp_path, late)
    ends = [line for line in lines(tmp_path) if line['id'] == stage.id]
    assert [line.get('superseded', False) for line in ends] == [True, False]


def test_lines_tell_by_which_weights_a_run_was_fed(tmp_path):
    stage = fake_task(tmp_path, 'stages/pre/seed0', stage=True)
    user, other = fake_task(tmp_path, 's/a/seed0', needs=(stage,)), fake_task(tmp_path)
    executor(tmp_path, stage, user, other).run(ONE)
    digest = weights_digest({'backbone.weight': torch.ones(1)})
    ends = {line['id']: line for line in lines(tmp_path) if line.get('final')}
    assert ends[stage.id]['weights_sha256'] == digest
    assert ends[user.id]['fed_weights'] == {stage.id: digest}
    assert ends[other.id]['fed_weights'] == {}


def test_a_stage_that_diverges_takes_its_runs_along(tmp_path):
    stage = fake_task(tmp_path, 'stages/pre/seed0', stage=True, error='nan')
    user = fake_task(tmp_path, 's/a/seed0', needs=(stage,))
    states = executor(tmp_path, stage, user).run(ONE)
    assert states == {stage.id: 'diverged', user.id: 'failed'}
    reason = lines(tmp_path)[-1]['reason']
    assert reason == 'stage stages/pre/seed0 diverged: loss NaN'


def test_a_stage_resumes_without_evaluations(tmp_path):
    stage = fake_task(tmp_path, 'stages/pre/seed0', stage=True, deaths=('train3',))
    user = fake_task(tmp_path, 's/a/seed0', needs=(stage,))
    finish(tmp_path, stage, user)
    assert 'start 2' in diary(stage)


@pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl')
def test_a_harness_that_is_killed_leaves_no_training_behind_and_can_go_on(tmp_path):
    task = fake_task(tmp_path, iterations=400, interval=100, pause=0.01)
    harness = run_in_background(tmp_path, task)
    wait_for(lambda: (task.folder / 'iter_100.pth').exists())
    wait_for(lambda: '105' in diary(task))
    os.kill(harness.pid, signal.SIGKILL)
    harness.join()
    time.sleep(0.1)
    before = len(diary(task))
    time.sleep(0.1)
    assert len(diary(task)) == before
    executor(tmp_path, task).run(ONE)
    check_complete(tmp_path, task)
    assert [t for t in diary(task) if t.startswith('start')] == ['start 0', 'start 100']


STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize('number', STOPPING)
def test_an_interrupted_harness_stops_its_trainings(tmp_path, number):
    task = fake_task(tmp_path, iterations=1000, interval=500, pause=0.01)
    harness = run_in_background(tmp_path, task)
    wait_for(lambda: task.folder.exists() and (task.folder / 'progress').exists())
    os.kill(harness.pid, number)
    harness.join(30)
    assert harness.exitcode is not None
    before = len(diary(task))
    time.sleep(0.1)
    assert len(diary(task)) == before
    assert not (tmp_path / 'results.jsonl').exists()


@pytest.mark.parametrize('number', STOPPING)
def test_a_signal_that_is_ignored_stays_ignored(tmp_path, number):
    # as nohup does with SIGHUP, and a shell with SIGINT of what runs with &
    task = fake_task(tmp_path, iterations=100, interval=50, pause=0.01)
    harness = run_in_background(tmp_path, task, ignored=[number])
    wait_for(lambda: (task.folder / 'progress').exists())
    os.kill(harness.pid, number)
    harness.join(60)
    assert harness.exitcode == 0
    check_complete(tmp_path, task)


@pytest.mark.parametrize('number', STOPPING)
def test_a_second_signal_does_not_keep_other_trainings_from_being_stopped(
    tmp_path, number
):
    behaviour = dict(iterations=2000, interval=1000, pause=0.01, slow_end=0.3)
    tasks = [fake_task(tmp_path, f's/{arm}/seed0', **behaviour) for arm in 'abc']
    harness = run_in_background(tmp_path, *tasks)
    wait_for(lambda: all((task.folder / 'progress').exists() for task in tasks))
    os.kill(harness.pid, signal.SIGTERM)
    wait_for(lambda: any('asked to end' in diary(task) for task in tasks))
    os.kill(harness.pid, number)
    harness.join(60)
    assert all(diary(task)[-1] == 'asked to end' for task in tasks)


def test_signals_are_handled_as_before_once_the_study_has_ended(tmp_path):
    before = [signal.getsignal(number) for number in STOPPING]
    executor(tmp_path, fake_task(tmp_path)).run(ONE)
    assert [signal.getsignal(number) for number in STOPPING] == before


@pytest.mark.parametrize(
    ('error', 'status'), [(None, 'finished'), ('nan', 'diverged'), ('crash', 'failed')]
)
def test_a_run_that_another_harness_ends_meanwhile_is_not_repeated(
    tmp_path, monkeypatch, error, status
):
    task = fake_task(tmp_path, error=error)
    one, other = executor(tmp_path, task), executor(tmp_path, task)
    late = []

    def lock_late(task):
        """Let the other one run it just before this one has the lock."""
        if not late:
            late.append(task)
            other.run(ONE)
        return lock(task)

    monkeypatch.setattr(executor_module, 'lock', lock_late)
    assert one.run(ONE) == {task.id: status} and late
    assert diary(task).count('start 0') == 1


def test_a_stage_that_another_harness_clears_away_meanwhile_is_not_repeated(
    tmp_path, monkeypatch
):
    stage = fake_task(tmp_path, 'stages/pre/seed0', stage=True)
    user = fake_task(tmp_path, 's/a/seed0', needs=(stage,))
    one, other = (executor(tmp_path, stage, user) for _ in range(2))
    late = []

    def lock_late(task):
        if not late:
            late.append(task)
            other.run(ONE)
        return lock(task)

    monkeypatch.setattr(executor_module, 'lock', lock_late)
    one.run(ONE)
    assert late and not stage.checkpoint.exists()
    assert diary(stage).count('start 0') == diary(user).count('start 0') == 1


@pytest.mark.parametrize('error', ['nan', 'crash', None])
def test_a_run_whose_end_is_being_written_is_not_started_by_another_harness(
    tmp_path, monkeypatch, error
):
    task = fake_task(tmp_path, error=error)
    one, other = executor(tmp_path, task), executor(tmp_path, task)
    second = threading.Thread(target=other.run, args=(ONE,))
    replace = one.results.replace

    def replace_slowly(*args):
        second.start()
        time.sleep(0.5)
        replace(*args)

    monkeypatch.setattr(one.results, 'replace', replace_slowly)
    one.run(ONE)
    second.join(60)
    assert not second.is_alive()
    assert diary(task).count('start 0') == 1
    assert len([line for line in lines(tmp_path) if line.get('final')]) == 1


def test_a_run_that_another_harness_leaves_unfinished_is_taken_over(tmp_path):
    task = fake_task(tmp_path)
    held = lock(task)
    second = threading.Thread(target=executor(tmp_path, task).run, args=(ONE,))
    second.start()
    time.sleep(0.1)
    assert not task.folder.exists()
    held.close()
    second.join(60)
    check_complete(tmp_path, task)


def test_a_task_that_another_harness_runs_is_left_alone(tmp_path):
    task = fake_task(tmp_path)
    held = lock(task)
    with pytest.raises(Busy):
        lock(task)
    held.close()
    # the file is still there, and nobody holds it
    lock(task).close()


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_what_an_earlier_start_left_running_is_ended(tmp_path):
    task = fake_task(tmp_path)
    left = subprocess.Popen(
        [sys.executable, '-c', 'import time; time.sleep(600)'],
        env=dict(os.environ, LFI_STUDY_TASK=str(task.folder)),
    )
    other = subprocess.Popen(
        [sys.executable, '-c', 'import time; time.sleep(600)'],
        env=dict(os.environ, LFI_STUDY_TASK=str(task.folder) + '0'),
    )
    try:
        wait_for(lambda: b'LFI_STUDY' in environment(left.pid))
        end_leftovers(task, patience=0)
        assert left.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def environment(pid):
    with open(f'/proc/{pid}/environ', 'rb') as stream:
        return stream.read()


def test_a_folder_of_another_config_is_not_resumed(tmp_path):
    task = fake_task(tmp_path, deaths=('train3',))
    with pytest.raises(Stopped):
        executor(tmp_path, task).run(ONE)
    other = fake_task(tmp_path)
    other.digest = 'another'
    executor(tmp_path, other).run(ONE)
    assert 'start 2' not in diary(other)


def test_a_run_that_ended_under_another_config_counts_for_nothing(tmp_path):
    task = fake_task(tmp_path, deaths=('end',))
    with pytest.raises(Stopped):
        executor(tmp_path, task).run(ONE)
    other = fake_task(tmp_path)
    other.digest = 'another'
    executor(tmp_path, other).run(ONE)
    assert diary(other).count('start 0') == 2


def test_a_crash_after_a_resume_is_not_taken_for_an_earlier_divergence(tmp_path):
    task = fake_task(tmp_path, deaths=('train3',))
    with pytest.raises(Stopped):
        executor(tmp_path, task).run(ONE)
    # diverged, and the harness was killed before it wrote that down
    (task.folder / 'diverged.json').write_text('{"iteration": 3, "reason": "NaN"}')
    again = fake_task(tmp_path, error='crash')
    assert executor(tmp_path, again).run(ONE) == {task.id: 'failed'}
    assert diary(task)[-1] == 'start 2'


@pytest.mark.parametrize(
    ('first', 'second', 'dirty'),
    [
        (True, False, True),
        (False, True, True),
        (None, True, True),
        (False, False, False),
        (None, False, None),
    ],
)
def test_a_line_names_the_code_of_every_attempt(
    tmp_path, monkeypatch, first, second, dirty
):
    told = [dict(commit='1', dirty=first), dict(commit='2', dirty=second)]
    made = iter(told)
    monkeypatch.setattr(executor_module, 'commit', lambda: next(made))
    task = fake_task(tmp_path, deaths=('train3',))
    finish(tmp_path, task)
    for line in lines(tmp_path):
        assert line['attempts'] == 2 and line['starts'] == told
        assert line['commits'] == ['1', '2'] and line['commit'] == '2'
        assert line['dirty'] is dirty


def test_slots_share_out_gpus_and_cores(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    gpus = slots([0, 1], 2, 1, None)
    assert [slot['CUDA_VISIBLE_DEVICES'] for slot in gpus] == ['0', '1', '0', '1']
    assert {slot['OMP_NUM_THREADS'] for slot in gpus} == {'4'}
    cpus = slots(None, 1, 3, 2)
    assert [slot['CUDA_VISIBLE_DEVICES'] for slot in cpus] == [''] * 3
    assert {slot['OMP_NUM_THREADS'] for slot in cpus} == {'2'}
