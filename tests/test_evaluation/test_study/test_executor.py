"""Runs that are killed, diverge, crash and wait for one another."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from lfi_mmdet.evaluation.study.executor import Stopped, slots
from lfi_mmdet.evaluation.study.process import Busy, end_leftovers, lock

from .fakes import diary, executor, fake_task, install

ONE = [dict(OMP_NUM_THREADS='1')]


@pytest.fixture(autouse=True)
def trainer(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)


def lines(root):
    text = (root / 'results.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


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


def run_in_background(root, *tasks):
    """The harness in a process of its own, which can be killed."""
    process = multiprocessing.get_context('fork').Process(
        target=executor(root, *tasks).run, args=(ONE,)
    )
    process.start()
    return process


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
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


def test_slots_share_out_gpus_and_cores(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    gpus = slots([0, 1], 2, 1, None)
    assert [slot['CUDA_VISIBLE_DEVICES'] for slot in gpus] == ['0', '1', '0', '1']
    assert {slot['OMP_NUM_THREADS'] for slot in gpus} == {'4'}
    cpus = slots(None, 1, 3, 2)
    assert [slot['CUDA_VISIBLE_DEVICES'] for slot in cpus] == [''] * 3
    assert {slot['OMP_NUM_THREADS'] for slot in cpus} == {'2'}
