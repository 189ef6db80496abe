"""Importing lfi_mmdet first provides mmcv's ops and registers everything."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope

import lfi_mmdet  # noqa: F401


@pytest.fixture(autouse=True)
def fresh_globals():
    """Same seed and scope for every test; nothing of an earlier runner is left."""
    torch.manual_seed(0)
    init_default_scope('mmdet')
    MessageHub.get_current_instance().runtime_info.pop('iter', None)
    yield
