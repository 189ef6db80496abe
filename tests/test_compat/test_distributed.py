"""Several processes on the CPU."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS

from lfi_mmdet.engine import distributed
from lfi_mmdet.engine.distributed import leave_distributed, setup_distributed

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def cpu(monkeypatch):
    """A machine without an accelerator, and no process group."""
    monkeypatch.setattr(distributed, '_has_accelerator', lambda: False)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def one_process(cpu, monkeypatch):
    """The environment that torchrun makes for a single process."""
    values = ('0', '1', '0', '127.0.0.1', str(free_port()))
    for name, value in zip(ENVIRONMENT, values):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_nothing_is_done_without_a_launcher_or_with_an_accelerator(
    cpu, monkeypatch, launcher
):
    monkeypatch.setattr(distributed, '_has_accelerator', lambda: launcher == 'pytorch')
    cfg = Config(dict(find_unused_parameters=False))
    setup_distributed(cfg, launcher)
    assert cfg.to_dict() == dict(find_unused_parameters=False)
    assert not dist.is_initialized()


def test_a_cuda_device_counts_as_an_accelerator(monkeypatch):
    for name in ('cuda', 'npu', 'mlu', 'musa'):
        monkeypatch.setattr(distributed, f'is_{name}_available', lambda: False)
    assert not distributed._has_accelerator()
    monkeypatch.setattr(distributed, 'is_cuda_available', lambda: True)
    assert distributed._has_accelerator()


def test_an_unknown_launcher_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'torchrun', choose from .*'pytorch'"):
        setup_distributed(Config(), 'torchrun')


def test_a_sharded_model_is_refused_without_an_accelerator(one_process):
    cfg = Config(dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel')))
    with pytest.raises(RuntimeError, match="DataParallel' needs accelerators"):
        setup_distributed(cfg, 'pytorch')
    assert not dist.is_initialized()


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
@pytest.mark.parametrize('name', ENVIRONMENT)
def test_a_missing_variable_of_torchrun_is_named(
    one_process, monkeypatch, launcher, name
):
    monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match=f"'{launcher}'.* {name} not set.*torchrun"):
        setup_distributed(Config(), launcher)
    assert not dist.is_initialized()


def test_the_group_is_gloo_whatever_the_configured_backend(one_process):
    setup_distributed(
        Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl')))), 'pytorch'
    )
    assert dist.get_backend() == 'gloo'


def test_the_group_gets_the_configured_timeout(one_process, monkeypatch):
    calls = []
    monkeypatch.setattr(
        dist, 'init_process_group', lambda *args, **kwargs: calls.append((args, kwargs))
    )
    setup_distributed(Config(dict(env_cfg=dict(dist_cfg=dict(timeout=77)))), 'pytorch')
    setup_distributed(Config(), 'pytorch')
    timeout = timedelta(seconds=77)
    assert calls == [(('gloo',), dict(timeout=timeout)), (('gloo',), {})]


def test_the_group_is_left_when_the_work_is_done(one_process):
    setup_distributed(Config(), 'pytorch')
    assert dist.is_initialized()
    leave_distributed()
    assert not dist.is_initialized()
    leave_distributed()  # without a group there is nothing to leave


def test_several_processes_end_well_with_all_they_said_and_their_workers(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        """
import multiprocessing, sys, time
import torch
from mmengine.config import Config
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from lfi_mmdet.engine.distributed import leave_distributed, setup_distributed

if __name__ == '__main__':
    setup_distributed(Config(), 'pytorch')
    model = DistributedDataParallel(nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    sleeper = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
    sleeper.start()
    sys.stdout.write('done without a newline;')
    leave_distributed()
    sys.exit('was to end before')
"""
    )
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2',
         '--master_port', str(free_port()), str(script)],
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('done without a newline;') == 2


def test_an_existing_group_is_left_alone(one_process):
    dist.init_process_group('gloo')
    group = dist.group.WORLD
    cfg = Config()
    setup_distributed(cfg, 'pytorch')
    assert dist.group.WORLD is group
    assert cfg.model_wrapper_cfg.device_ids is None


@pytest.mark.parametrize('find_unused', [True, False])
def test_the_wrapper_is_mmengines_own_less_its_device_ids(one_process, find_unused):
    cfg = Config(dict(find_unused_parameters=find_unused))
    setup_distributed(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg.to_dict() == dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused,
    )


@pytest.mark.parametrize('wrapper', [None, MMDistributedDataParallel])
def test_a_given_wrapper_config_keeps_what_it_says(one_process, wrapper):
    given = dict(detect_anomalous_params=True, device_ids=[0])
    if wrapper is not None:
        given['type'] = wrapper
    cfg = Config(dict(model_wrapper_cfg=given))
    setup_distributed(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg.to_dict() == dict(given, device_ids=None)


# another module of tests imports this one, under another name
@MODEL_WRAPPERS.register_module(force=True)
class WrapperOfNoDevice:
    """A wrapper that is no ``DistributedDataParallel``."""


def test_a_wrapper_that_takes_no_device_ids_gets_none(one_process):
    given = dict(type='WrapperOfNoDevice')
    cfg = Config(dict(model_wrapper_cfg=dict(given)))
    setup_distributed(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg.to_dict() == given


TRAIN = """
import sys
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner

from lfi_mmdet.engine.distributed import setup_distributed


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        # each process starts elsewhere; DDP has to start all with the first's
        torch.nn.init.constant_(self.linear.weight, get_rank() + 0.5)
        torch.nn.init.constant_(self.linear.bias, get_rank())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=(self.linear(torch.stack(list(inputs))) - 1).square().mean())


@DATASETS.register_module()
class ToyDataset(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([1.0, index / 8]))


cfg = Config(dict(
    model=dict(type='ToyModel'),
    work_dir=sys.argv[1],
    launcher='pytorch',
    train_dataloader=dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type='ToyDataset'),
        sampler=dict(type='DefaultSampler', shuffle=False),
    ),
    train_cfg=dict(by_epoch=True, max_epochs=2),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=120)),
    log_level='ERROR',
))
setup_distributed(cfg, 'pytorch')
runner = Runner.from_cfg(cfg)
runner.train()
assert isinstance(runner.model, MMDistributedDataParallel)
assert runner.world_size == 2
history = runner.message_hub.get_scalar('train/loss').data[0]
assert len(history) == 4, history
torch.save(runner.model.module.state_dict(), f'{sys.argv[1]}/rank{get_rank()}.pt')
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without CUDA')
def test_two_processes_train_to_the_same_weights(tmp_path):
    script = tmp_path / 'train.py'
    script.write_text(TRAIN)
    root = str(Path(distributed.__file__).parents[2])
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    command += ['--master_port', str(free_port()), str(script), str(tmp_path)]
    done = subprocess.run(
        command,
        env=dict(os.environ, PYTHONPATH=root, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    weights = [torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2)]
    assert torch.equal(weights[0]['linear.weight'], weights[1]['linear.weight'])
    assert torch.equal(weights[0]['linear.bias'], weights[1]['linear.bias'])

    # one process with the same start and both halves of each batch
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for indices in 2 * [torch.arange(4), torch.arange(4, 8)]:
        inputs = torch.stack([torch.ones(4), indices / 8], dim=1)
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        optimizer.step()
    assert torch.allclose(weights[0]['linear.weight'], model.weight, atol=1e-6)
    assert torch.allclose(weights[0]['linear.bias'], model.bias, atol=1e-6)
