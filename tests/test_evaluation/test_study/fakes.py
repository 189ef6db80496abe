"""Trainings without training: a program that leaves what tools/train.py leaves."""

import io
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lfi_mmdet.evaluation.study.executor import Executor
from lfi_mmdet.evaluation.study.results import Results
from lfi_mmdet.evaluation.study.tasks import Task

ONE = [dict(OMP_NUM_THREADS='1')]

_stream = io.BytesIO()
torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), _stream)

TRAINER = (
    f'CHECKPOINT = {_stream.getvalue()!r}'
    + '''
import json, os, signal, sys, time
from pathlib import Path
config, folder = Path(sys.argv[1]), Path(sys.argv[3])
told = {}
exec(config.read_text(), told)
resume = Path(sys.argv[5]) if len(sys.argv) > 5 else None
diary = folder.parent / f'{folder.name}.diary'

def note(text):
    with diary.open('a') as stream:
        stream.write(f'{text}\\n')

def once(point):
    """Dies as by kill -9 when it is at a point for the first time."""
    mark = folder.parent / f'{folder.name}.{point}'
    if point in told['deaths'] and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9 if told['killed'] else 15)

def end_slowly(number, frame):
    note('asked to end')
    time.sleep(told['slow_end'])
    os._exit(1)

if told['slow_end']:
    signal.signal(signal.SIGTERM, end_slowly)

def put(path, content):
    aside = path.with_suffix('.aside')
    aside.write_text(content)
    os.replace(aside, path)

def record(finished, iteration):
    put(folder / 'record.json', json.dumps(dict(
        finished=finished, iteration=iteration, evaluations=done, seed=0, gpu=None,
        cpu_threads=1, versions={}, start=dict(sha256='s', kept=0),
        order=dict(sha256='o', images=1, labelled_images=1))))

start = int(resume.stem.split('_')[1]) if resume else 0
known = folder / 'record.json'
done = json.loads(known.read_text())['evaluations'] if known.exists() else {}
done = {k: v for k, v in done.items() if int(k) <= start}
record(False, start)
note(f'start {start}')
if told['error'] == 'crash':
    print('error: no such luck')
    sys.exit(1)
for step in range(start + 1, told['iterations'] + 1):
    (folder / 'progress').write_text(str(step))
    note(step)
    time.sleep(told['pause'])
    if told['error'] == 'nan' and step == 2:
        (folder / 'diverged.json').write_text('{"iteration": 2, "reason": "loss NaN"}')
        sys.exit(1)
    once(f'train{step}')
    if step % told['interval'] == 0 or step == told['iterations']:
        path = folder / f'iter_{step}.pth'
        path.write_text('half')
        once(f'write{step}')
        path.write_bytes(CHECKPOINT)
        (folder / 'last_checkpoint').write_text(str(path))
        once(f'saved{step}')
        if told['evaluates']:
            done[str(step)] = {'coco/segm_mAP': step / 100, 'coco/bbox_mAP': 0.5}
            record(False, step)
        once(f'evaluated{step}')
record(True, told['iterations'])
once('end')
'''
)


def fake_task(
    root: Path,
    name: str = 'setting/arm/seed0',
    iterations: int = 4,
    interval: int = 2,
    stage: bool = False,
    needs: tuple = (),
    **behaviour: object,
) -> Task:
    """Make a task for the trainer above; ``deaths`` are points where it dies once."""
    config = dict(
        iterations=iterations,
        interval=interval,
        evaluates=not stage,
        pause=0.0,
        deaths=(),
        killed=False,
        error=None,
        slow_end=0.0,
    )
    setting, arm, seed = name.split('/')
    return Task(
        id=name,
        folder=root / name,
        config={**config, **behaviour},
        digest=f'digest of {name}',
        iterations=iterations,
        val_interval=None if stage else interval,
        facts=dict(setting=setting, arm=arm, seed=int(seed.removeprefix('seed'))),
        needs=list(needs),
    )


def install(root: Path, monkeypatch) -> None:
    """Let the harness start the trainer above."""
    program = root / 'trainer.py'
    program.write_text(TRAINER)

    def command(task: Task) -> list[str]:
        config = task.folder / 'study_config.py'
        return [str(program), str(config), '--work-dir', str(task.folder)]

    monkeypatch.setattr('lfi_mmdet.evaluation.study.process.training_command', command)
    monkeypatch.setattr('lfi_mmdet.evaluation.study.executor._POLL', 0.01)


def executor(root: Path, *tasks: Task) -> Executor:
    """An executor with results in ``root``."""
    return Executor(
        tasks,
        Results(root / 'results.jsonl'),
        dict(study='fake'),
        {str(root): 'WORK'},
        keep_checkpoints=False,
        keep_stages=False,
        command=lambda task: ['tools/study.py', task.id],
    )


def diary(task: Task) -> list[str]:
    """What the trainer did, over all its starts."""
    return (
        task.folder.with_name(f'{task.folder.name}.diary').read_text().split('\n')[:-1]
    )


def lines(root: Path) -> list[dict]:
    """All lines of the results."""
    text = (root / 'results.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


def run_in_background(
    root: Path, *tasks: Task, ignored: Sequence[int] = ()
) -> multiprocessing.Process:
    """The harness in a process of its own, which can be killed."""

    def run() -> None:
        # whatever the shell that runs the tests lets them ignore
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        executor(root, *tasks).run(ONE * len(tasks))

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    return process


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
