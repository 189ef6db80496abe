"""Contracts that only a whole run can break: resume, EMA, DDP, what is saved."""

import pytest
import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner

from tests.tiny import tiny_config_text, write_tiny_coco

FLIP = "train_pipeline.insert(3, dict(type='RandomFlip', prob=0.5))\n"
NOISE = "model['backbone'].update(drop_path_rate=0.3)\n"
SEED = "default_hooks.update(iteration_seed=dict(type='IterationSeedHook'))\n"
EPOCHS = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=100)
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1)
log_processor = dict(by_epoch=True)
train_dataloader.update(persistent_workers=False)
"""
EMA = "custom_hooks = [dict(type='EMAHook')]\n"


def make_config(root, extra='', **kwargs) -> Config:
    write_tiny_coco(root)
    path = root / 'tiny.py'
    path.write_text(tiny_config_text(root, extra=FLIP + NOISE + SEED + extra, **kwargs))
    return Config.fromfile(path)


class Recorder(Hook):
    """Keeps the losses of every iteration."""

    def __init__(self):
        self.losses = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        values = {name: float(value.detach()) for name, value in outputs.items()}
        self.losses[runner.iter + 1] = values


def train(cfg: Config, work_dir, **changes) -> dict[int, dict]:
    """Train and return the losses by iteration."""
    cfg = cfg.copy()
    cfg.work_dir = str(work_dir)
    cfg.merge_from_dict(changes)
    runner = Runner.from_cfg(cfg)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder.losses


@pytest.mark.slow
@pytest.mark.parametrize(
    'extra, checkpoint, first, workers',
    [
        ('', 'iter_2.pth', 2, 1),
        (EPOCHS, 'epoch_1.pth', 2, 1),
        (EPOCHS, 'epoch_1.pth', 2, 0),
    ],
    ids=['iterations', 'epochs', 'epochs without workers'],
)
def test_a_resumed_run_repeats_the_losses_of_an_uninterrupted_one(
    tmp_path, extra, checkpoint, first, workers
):
    cfg = make_config(tmp_path, extra, max_iters=4, num_workers=workers)
    whole = train(cfg, tmp_path / 'whole')
    resumed = train(
        cfg,
        tmp_path / 'resumed',
        resume=True,
        load_from=str(tmp_path / 'whole' / checkpoint),
    )
    assert sorted(whole) == [1, 2, 3, 4]
    assert sorted(resumed) == list(range(first + 1, 5))
    for step, losses in resumed.items():
        assert losses == whole[step], step


def test_two_runs_with_the_same_seed_have_the_same_losses(tmp_path):
    cfg = make_config(tmp_path)
    assert train(cfg, tmp_path / 'a') == train(cfg, tmp_path / 'b') != {}


def test_every_saved_file_holds_the_student_alone_under_plain_names(tmp_path):
    cfg = make_config(tmp_path, EMA)
    train(cfg, tmp_path / 'run')
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)
    stock = ConfigDict(cfg.model, type='MaskRCNN')
    stock.pop('teacher'), stock.pop('distiller')
    stock.backbone.init_cfg = None
    names = set(MODELS.build(stock).state_dict())
    assert set(saved['state_dict']) == names
    ema = set(saved['ema_state_dict']) - {'steps'}
    assert {name.removeprefix('module.') for name in ema} == names


def test_a_saved_student_loads_strictly_into_stock_mask_rcnn(tmp_path):
    cfg = make_config(tmp_path)
    train(cfg, tmp_path / 'run')
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)
    stock = ConfigDict(cfg.model, type='MaskRCNN')
    stock.pop('teacher'), stock.pop('distiller')
    model = MODELS.build(stock)
    result = model.load_state_dict(saved['state_dict'], strict=True)
    assert not result.missing_keys and not result.unexpected_keys


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


LOSSES = dict(
    attention=dict(type='InteractionAttentionLoss'),
    dynamics=dict(type='InteractionDynamicsLoss'),
)


@pytest.mark.parametrize('feedback', [True, False])
@pytest.mark.parametrize(
    'distiller',
    [
        dict(losses=LOSSES),
        dict(losses=dict(attention=LOSSES['attention']), layer_mapping='last'),
        dict(losses=LOSSES, schedule=dict(stop=2)),
        None,
    ],
    ids=['two losses', 'last layer', 'stopped', 'no teacher'],
)
def test_ddp_trains_without_looking_for_unused_parameters(
    tmp_path, process_group, feedback, distiller
):
    cfg = make_config(tmp_path)
    cfg.model.backbone.feedback = feedback
    if distiller is None:
        cfg.model.teacher = cfg.model.distiller = None
    else:
        cfg.model.distiller = dict(distiller, type='InteractionDistiller')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.set_class_names(cfg.metainfo.classes)
    ddp = MMDistributedDataParallel(
        model, find_unused_parameters=False, broadcast_buffers=False
    )
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    for iteration, data in enumerate([*loader, *loader]):
        if distiller and 'schedule' in distiller:
            factor = model.distiller.schedule.factor(iteration, 4)
            model.distiller.schedule.current = lambda factor=factor: factor
        data = ddp.module.data_preprocessor(data, True)
        losses = ddp(**data, mode='loss')
        total, _ = model.parse_losses(losses)
        # a parameter without gradient makes the second forward pass fail
        total.backward()
    assert iteration == 3
