"""Parts of the student are compiled without anything else noticing."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch._dynamo.utils import counters

from tests.tiny import write_tiny_run


def train(tmp_path, name, hooks):
    cfg = Config.fromfile(tmp_path / 'tiny.py')
    cfg.custom_hooks = hooks
    cfg.work_dir = str(tmp_path / name)
    runner = Runner.from_cfg(cfg)
    runner.train()
    loss = runner.message_hub.log_scalars['train/loss'].current()
    return runner, loss, torch.load(tmp_path / name / 'iter_2.pth', weights_only=False)


def test_a_compiled_student_trains_alike_and_is_saved_under_its_names(tmp_path):
    write_tiny_run(tmp_path)
    counters.clear()
    plain = train(tmp_path, 'a', [])
    assert not counters['stats']['unique_graphs']
    hook = dict(type='CompileHook', module='backbone.blocks', backend='eager')
    compiled = train(tmp_path, 'b', [hook])
    assert counters['stats']['unique_graphs']  # it was compiled indeed
    assert compiled[1] == pytest.approx(plain[1], rel=1e-5)
    assert set(compiled[2]['state_dict']) == set(plain[2]['state_dict'])


def test_a_module_that_is_not_there_is_named(tmp_path):
    write_tiny_run(tmp_path)
    hook = dict(type='CompileHook', module='backbone.bloks')
    with pytest.raises(
        ValueError, match='CompileHook.module=backbone.bloks: .*backbone.blocks'
    ):
        train(tmp_path, 'a', [hook])
