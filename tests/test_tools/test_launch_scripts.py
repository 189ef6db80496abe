"""The shell scripts, with stand-ins for Python and srun; once with two processes."""

import os
import stat
import subprocess
import sys

import pytest

from tests.test_tools.conftest import TOOLS
from tests.tiny import write_tiny_run

SCRIPTS = ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh')


@pytest.fixture
def script(tmp_path):
    """Run a script; stand-ins print the words they are given, one in a line."""
    stand_in = (
        '#!/bin/sh\necho "$OMP_NUM_THREADS"\nprintf "%s\\n" "$@"\n'
        'echo "shared store off: $TORCH_DISABLE_SHARE_RDZV_TCP_STORE" >&2\n'
    )
    for name in ('python', 'srun'):
        path = tmp_path / name
        path.write_text(stand_in)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(name, *argv, **variables):
        kept = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
        search = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
        return subprocess.run(
            [TOOLS / name, *argv],
            env={**kept, 'PYTHON': 'python', 'PATH': search, **variables},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    return run


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_script_parses_and_says_how_it_is_used(script, name):
    assert subprocess.run(['bash', '-n', TOOLS / name]).returncode == 0
    run = script(name, 'one')
    assert run.returncode == 2
    assert run.stderr.startswith('usage: ') and not run.stdout


def test_one_machine_takes_any_free_port(script):
    words = script('dist_train.sh', 'a b.py', '2', '--amp').stdout.splitlines()[1:]
    assert words[0].endswith('_launch.py')
    assert {'--nnodes=1', '--nproc-per-node=2', '--rdzv-endpoint=127.0.0.1:0'} < {
        *words
    }
    assert words[-5].endswith('tools/train.py')
    assert words[-4:] == ['a b.py', '--launcher', 'pytorch', '--amp']


def test_several_machines_meet_where_the_variables_say(script):
    run = script(
        *('dist_test.sh', 'a.py', 'b.pth', '8', '--tta'),
        **dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='host', PORT='29501'),
    )
    words = run.stdout.splitlines()
    wanted = {
        '--nnodes=2',
        '--node-rank=1',
        '--master-addr=host',
        '--master-port=29501',
    }
    assert wanted < {*words}
    assert words[-5:] == ['a.py', 'b.pth', '--launcher', 'pytorch', '--tta']


def test_restarts_are_off_unless_asked_for_and_then_no_store_is_shared(script):
    run = script('dist_train.sh', 'a.py', '2')
    assert '--max-restarts=0' in run.stdout.splitlines()
    assert 'shared store off: \n' in run.stderr
    variables = dict(MAX_RESTARTS='3', NNODES='2', NODE_RANK='1', MASTER_ADDR='host')
    run = script('dist_train.sh', 'a.py', '2', **variables)
    words = run.stdout.splitlines()
    assert {'--max-restarts=3', '--rdzv-endpoint=host:29500'} < {*words}
    assert 'shared store off: 1\n' in run.stderr
    run = script('dist_train.sh', 'a.py', '2', MAX_RESTARTS='often')
    assert run.returncode == 2 and 'MAX_RESTARTS=often is not a number' in run.stderr


def test_given_threads_are_kept(script):
    run = script('dist_train.sh', 'a.py', '2', OMP_NUM_THREADS='3')
    assert run.stdout.splitlines()[0] == '3'


def test_a_number_of_processes_that_is_none_is_refused(script):
    run = script('dist_train.sh', 'a.py', '0')
    assert run.returncode == 2
    assert 'GPUS=0 is not a number of processes' in run.stderr


@pytest.mark.parametrize(
    'name, words',
    [
        ('slurm_train.sh', ['a.py', '--work-dir=b', '--launcher=slurm', '--amp']),
        ('slurm_test.sh', ['a.py', 'b', '--launcher=slurm', '--amp']),
    ],
)
def test_slurm_starts_one_task_per_gpu(script, name, words):
    run = script(
        *(name, 'part', 'job', 'a.py', 'b', '--amp'),
        **dict(GPUS='4', GPUS_PER_NODE='2', SRUN_ARGS='--time=1 --exclusive'),
    )
    given = run.stdout.splitlines()[1:]
    wanted = ['--partition=part', '--job-name=job', '--gres=gpu:2', '--ntasks=4']
    wanted += ['--ntasks-per-node=2', '--cpus-per-task=5', '--time=1', '--exclusive']
    assert {*wanted} < {*given}
    assert given[-4:] == words


@pytest.mark.slow
def test_two_processes_train_and_a_mistake_is_said_once(tmp_path):
    config = write_tiny_run(tmp_path)

    def train(*argv):
        return subprocess.run(
            [TOOLS / 'dist_train.sh', config, '2', *argv],
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'PYTHON': sys.executable},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=300,
        )

    run = train()
    assert run.returncode == 0, run.stderr
    assert (tmp_path / 'work_dirs' / 'tiny' / 'iter_2.pth').is_file()
    (log,) = tmp_path.glob('work_dirs/tiny/*/*.log')
    assert 'GPU number: 2' in log.read_text()

    run = train('--cfg-options', 'model.roi_head.bbox_head.num_classes=7')
    said = run.stderr
    assert run.returncode == 1, said
    assert said.count('but model.roi_head.bbox_head.num_classes=7') == 1, said
    assert 'Traceback' not in said, said
    assert 'was the first to fail, with exit code 1' in said, said
