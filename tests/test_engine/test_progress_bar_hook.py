"""Bars on standard error, beside the log."""

from mmengine.config import Config
from mmengine.runner import Runner

from tests.tiny import write_tiny_run


def test_training_and_evaluation_are_shown_as_bars(tmp_path, capfd):
    extra = "default_hooks.update(progress=dict(type='ProgressBarHook'))\n"
    cfg = Config.fromfile(write_tiny_run(tmp_path, extra=extra))
    cfg.merge_from_dict({'train_cfg.val_interval': 2, 'work_dir': str(tmp_path)})
    Runner.from_cfg(cfg).train()
    error = capfd.readouterr().err
    assert 'training: 100%' in error and '2/2' in error
    assert 'evaluation: 100%' in error and '4/4' in error
