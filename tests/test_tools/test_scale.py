"""Training beyond one process: accumulation, recomputation, and a process that dies."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.test_tools.conftest import TOOLS
from tests.tiny import write_tiny_run

KILLER = f"""
import os
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.hooks import Hook


@HOOKS.register_module()
class KillOnceHook(Hook):
    '''Ends the second process in the third iteration of the first attempt.'''

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        mark = Path('killed')
        if runner.rank == 1 and runner.iter == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), {int(signal.SIGKILL)})
"""

# as in our configs: what is drawn does not depend on what was drawn before
SEED = "default_hooks.update(iteration_seed=dict(type='IterationSeedHook'))\n"


def weights(root, iteration=4):
    path = root / 'work_dirs' / 'tiny' / f'iter_{iteration}.pth'
    return torch.load(path, weights_only=False)['state_dict']


def train(root, *argv, **environment):
    """Run two processes on the CPU; returns what they said."""
    done = subprocess.run(
        [TOOLS / 'dist_train.sh', root / 'tiny.py', '2', *argv],
        env={
            **os.environ, 'CUDA_VISIBLE_DEVICES': '', 'PYTHON': sys.executable,
            'PYTHONPATH': str(root), **environment,
        },
        capture_output=True, text=True, cwd=root, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """Weights after four iterations of two processes."""
    root = tmp_path_factory.mktemp('undisturbed')
    write_tiny_run(root, max_iters=4, extra=SEED)
    train(root)
    return weights(root)


def test_weights_move_only_when_enough_batches_are_accumulated(tool, tmp_path):
    config = write_tiny_run(tmp_path, max_iters=4)
    tool('train', config, '--cfg-options', 'optim_wrapper.accumulative_counts=2')
    found = [weights(tmp_path, iteration) for iteration in (1, 2, 3, 4)]
    for name in ('backbone.queries', 'roi_head.bbox_head.fc_cls.weight'):
        first, second, third, fourth = (state[name] for state in found)
        assert torch.equal(second, third)
        assert not torch.equal(first, second) and not torch.equal(third, fourth)


@pytest.mark.slow
def test_activations_that_are_recomputed_change_nothing_in_two_processes(
    undisturbed, tmp_path
):
    extra = "model['backbone'].update(with_cp=True, interaction_cp=True)"
    write_tiny_run(tmp_path, max_iters=4, extra=SEED + extra)
    train(tmp_path)
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, undisturbed[name], msg=name)


@pytest.mark.slow
def test_a_training_whose_process_is_killed_goes_on_to_the_same_end(
    undisturbed, tmp_path
):
    (tmp_path / 'killer.py').write_text(KILLER)
    extra = (
        "custom_imports['imports'].append('killer')\n"
        "custom_hooks = [dict(type='KillOnceHook')]"
    )
    write_tiny_run(tmp_path, max_iters=4, extra=SEED + extra)
    said = train(tmp_path, '--resume', MAX_RESTARTS='1')
    assert (tmp_path / 'killed').exists()
    assert 'resumed epoch: 0, iter: 2' in said
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, undisturbed[name], msg=name)
