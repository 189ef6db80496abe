"""Several processes on a machine without an accelerator."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import (
    is_cuda_available,
    is_mlu_available,
    is_musa_available,
    is_npu_available,
)
from mmengine.registry import MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
_ENVIRONMENT = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def setup_distributed(cfg: Config, launcher: str) -> None:
    """Make a distributed run possible on a machine that has only CPUs.

    mmengine's launchers and its model wrapping name a device of each process, which a
    CPU has not. If there is no accelerator, this starts a gloo process group, which
    mmengine leaves alone, and has ``DistributedDataParallel`` built without device
    ids. Otherwise, and for ``launcher='none'``, it does nothing.

    Args:
        cfg: Config of the run, before the runner is built, changed in place. What its
            ``model_wrapper_cfg`` already says is kept, but for ``device_ids``.
        launcher: One of :data:`LAUNCHERS`. Without an accelerator the processes have
            to be started by torchrun or with its environment variables, whichever it
            is.

    Raises:
        ValueError: If the launcher is not known.
        RuntimeError: If torchrun's environment variables are missing, or the model is
            to be sharded (FSDP), which torch does on accelerators only.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher={launcher!r}, choose from {LAUNCHERS}')
    if launcher == 'none' or _has_accelerator():
        return
    given = cfg.get('model_wrapper_cfg')
    kind = str((given or {}).get('type', ''))
    if 'FullySharded' in kind:
        raise RuntimeError(
            f'model_wrapper_cfg.type={kind!r} needs accelerators, and this machine has '
            'none; leave model_wrapper_cfg out for DistributedDataParallel'
        )
    if not dist.is_initialized():
        _init_gloo(cfg, launcher)
    if given is None:
        # what Runner.wrap_model does without a config, less its device_ids
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    elif _is_ddp(given.get('type', 'MMDistributedDataParallel')):
        given.device_ids = None


def leave_distributed() -> None:
    """Leave the process group, if there is one, after the work is done.

    Several gloo processes end here, with exit status 0. Left to the end of the
    interpreter, the threads of gloo may outlive what they use: models wrapped in
    ``DistributedDataParallel`` keep the group alive beyond
    ``destroy_process_group``, and a run that went well ends with SIGABRT.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    several = dist.get_backend() == 'gloo' and dist.get_world_size() > 1
    if several:
        # nobody closes a connection that another one still waits on
        dist.barrier()
    dist.destroy_process_group()
    if several:
        for worker in multiprocessing.active_children():
            worker.terminate()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _has_accelerator() -> bool:
    # the ones that mmengine's init_dist knows
    return bool(
        is_cuda_available()
        or is_npu_available()
        or is_mlu_available()
        or is_musa_available()
    )


def _init_gloo(cfg: Config, launcher: str) -> None:
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise RuntimeError(
            f'launcher={launcher!r} on a machine without an accelerator, but '
            f'{", ".join(missing)} not set in the environment. Start the command by '
            '`torchrun --nproc_per_node N ...` (python -m torch.distributed.run), or '
            "use launcher='none' for a single process."
        )
    options: dict[str, Any] = {}
    # mmengine takes seconds
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    if timeout is not None:
        options['timeout'] = timedelta(seconds=timeout)
    dist.init_process_group('gloo', **options)


def _is_ddp(wrapper: str | type) -> bool:
    # the runner gives device ids to these only
    found = MODEL_WRAPPERS.get(wrapper) if isinstance(wrapper, str) else wrapper
    return found is not None and issubclass(found, DistributedDataParallel)
