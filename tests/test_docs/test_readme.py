"""The README is right: the lines that a user adds are run as they stand there."""

import re
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from lfi_mmdet.engine.hooks import ClassNamesHook
from tests.tiny import CLASSES, write_tiny_run

README = Path(__file__).parents[2] / 'README.md'


def added_lines() -> str:
    """What the README adds to the config of Mask R-CNN."""
    blocks = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    (block,) = [
        text for text in blocks if text.startswith("_base_ = 'mmdet::mask_rcnn")
    ]
    return block


def test_a_stock_config_takes_at_most_eight_lines():
    lines = [line for line in added_lines().splitlines()[1:] if line.strip()]
    assert 0 < len(lines) <= 8


def test_these_lines_train_the_stock_detector_with_lfi(tmp_path):
    stock = Config.fromstring(added_lines().splitlines()[0], '.py')
    cfg = Config.fromstring(added_lines(), '.py')
    assert cfg.custom_imports.imports == ['lfi_mmdet']
    assert cfg.model.teacher.type == 'CoCaTeacher'
    # small, on tiny data, and from a teacher that needs no download
    cfg.model.teacher = dict(type='GroundTruthTeacher', grid_size=8)
    for part in (cfg, stock):
        part.model.backbone.update(depth=18, base_channels=8, init_cfg=None)
        part.model.neck.in_channels = [8, 16, 32, 64]
        for head in ('bbox_head', 'mask_head'):
            part.model.roi_head[head].num_classes = len(CLASSES)
        part.model.roi_head.bbox_head.fc_out_channels = 16
    write_tiny_run(tmp_path)
    tiny = Config.fromfile(tmp_path / 'tiny.py')
    for key in ('train_dataloader', 'train_cfg'):
        cfg[key] = tiny[key]
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'param_scheduler'):
        cfg[key] = None
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg[key] = None
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(tmp_path / 'work')
    runner = Runner.from_cfg(cfg)
    assert any(isinstance(hook, ClassNamesHook) for hook in runner.hooks)
    runner.train()
    assert runner.model.teacher.class_names == CLASSES
    history = runner.message_hub.log_scalars
    assert history['train/loss_lfi_attention'].current() > 0
    # stock mmdet finds all its weights in the file
    saved = torch.load(Path(cfg.work_dir) / 'iter_2.pth', weights_only=False)
    plain = MODELS.build(stock.model)
    result = plain.load_state_dict(saved['state_dict'], strict=False)
    assert not result.missing_keys
    assert all('interaction' in k or 'queries' in k for k in result.unexpected_keys)
