"""What of a study is run, and run again."""

import json
from types import SimpleNamespace

import pytest

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation.study.plan import parse_study
from lfi_mmdet.evaluation.study.process import lock
from lfi_mmdet.evaluation.study.runner import Selection, StudyRun

from .fakes import diary, fake_task, install

ONE = [dict(OMP_NUM_THREADS='1')]
CONTENT = dict(
    name='test', seeds=[0], config='c.py', iterations=4, val_interval=2,
    settings=dict(s=dict(scenes=dict(train=1), labels=['50%', '100%'])),
    arms=dict(twin=dict(twin=True), lfi={}),
)  # fmt: skip


@pytest.fixture(autouse=True)
def trainer(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)


def make(tmp_path):
    study = parse_study(CONTENT, tmp_path / 'study.yaml')
    run = StudyRun(study, tmp_path, Selection())
    run.maker = SimpleNamespace(folders={str(tmp_path): 'WORK'})
    return run


def run(tmp_path, *tasks, redo=()):
    return make(tmp_path).run(tasks, redo, ONE)


def ends(tmp_path):
    text = (tmp_path / 'results.jsonl').read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [(e['status'], e.get('superseded', False)) for e in lines if e.get('final')]


def test_a_failed_run_is_run_again_on_request_and_its_lines_stay(tmp_path):
    bad = fake_task(tmp_path, 's/lfi/seed0', error='crash')
    good = fake_task(tmp_path, 's/twin/seed0')
    run(tmp_path, good, bad)
    mended = fake_task(tmp_path, 's/lfi/seed0')
    assert run(tmp_path, good, mended)[bad.id] == 'failed'
    assert run(tmp_path, good, mended, redo=['failed'])[bad.id] == 'finished'
    assert ends(tmp_path) == [
        ('finished', False),
        ('failed', True),
        ('finished', False),
    ]
    assert diary(good).count('start 0') == 1


def test_a_run_whose_config_has_changed_is_named_and_not_taken_for_finished(tmp_path):
    run(tmp_path, fake_task(tmp_path, 's/lfi/seed0'))
    other = fake_task(tmp_path, 's/lfi/seed0')
    other.digest = 'another'
    assert make(tmp_path).state(other) == 'changed'
    with pytest.raises(InputError, match='1 trainings .* s/lfi/seed0; --redo changed'):
        run(tmp_path, other)
    assert run(tmp_path, other, redo=['changed']) == {other.id: 'finished'}
    assert ends(tmp_path) == [('finished', True), ('finished', False)]


def test_what_another_harness_trains_is_not_deleted_to_be_run_again(tmp_path):
    task = fake_task(tmp_path, 's/lfi/seed0', error='crash')
    run(tmp_path, task)
    before = (tmp_path / 'results.jsonl').read_text()
    with lock(task), pytest.raises(InputError, match='s/lfi/seed0 is being trained'):
        run(tmp_path, task, redo=['failed'])
    assert (tmp_path / 'results.jsonl').read_text() == before
    assert (task.folder / 'log.txt').is_file()


def test_states_of_trainings(tmp_path):
    task = fake_task(tmp_path, 's/lfi/seed0')
    assert make(tmp_path).state(task) == 'open'
    task.folder.mkdir(parents=True)
    (task.folder / 'task.json').write_text('{"id": 1}')
    assert make(tmp_path).state(task) == 'begun'
    run(tmp_path, task)
    assert make(tmp_path).state(task) == 'finished'


def test_the_plan_is_that_of_the_whole_study_and_written_once(tmp_path):
    run(tmp_path, fake_task(tmp_path, 's-50pct/lfi/seed0'))
    before = (tmp_path / 'results.jsonl').read_text()
    plan = json.loads(before.splitlines()[0])
    assert [r['id'] for r in plan['runs']] == [
        's-50pct/twin/seed0',
        's-50pct/lfi/seed0',
        's-100pct/twin/seed0',
        's-100pct/lfi/seed0',
    ]
    assert plan['settings']['s-50pct']['title'] == 's, 50%'
    run(tmp_path, fake_task(tmp_path, 's-50pct/lfi/seed0'))
    assert (tmp_path / 'results.jsonl').read_text() == before


def test_a_selection_takes_settings_with_and_without_their_labels(tmp_path):
    study = parse_study(CONTENT, tmp_path / 'study.yaml')

    def chosen(**parts):
        selection = Selection(**parts)
        selection.check(study)
        return [
            (s.name, a.name) for s, a, seed in study.runs() if selection(s, a, seed)
        ]

    assert len(chosen()) == len(chosen(settings=('s',), seeds=(0,))) == 4
    assert chosen(settings=('s-50pct',), arms=('lfi',)) == [('s-50pct', 'lfi')]
    with pytest.raises(InputError, match=r"--arms: 'x' is none of"):
        chosen(arms=('x',))


def test_the_command_of_a_run_names_it_and_no_folder_of_this_machine(tmp_path):
    command = make(tmp_path).command(fake_task(tmp_path, 's/lfi/seed3'))
    expected = 'tools/study.py study.yaml --settings s --arms lfi --seeds 3'
    assert command == expected.split()
