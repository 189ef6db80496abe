"""Training from stored targets is the training with the teacher, without it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner

from lfi_mmdet.datasets.transforms import load_cached_targets
from lfi_mmdet.engine.caching import cache_targets
from lfi_mmdet.engine.caching_options import CachingOptions
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets
from tests.stores import some_record, write_store
from tests.test_compat.test_distributed import free_port
from tests.tiny import write_tiny_coco, write_tiny_run

SIZE = 128
RANDOM = [
    dict(type='RandomResize', scale=(SIZE, SIZE), ratio_range=(0.75, 1.5)),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical']),
    dict(type='RandomCrop', crop_size=(0.6, 0.6), crop_type='relative_range'),
]
LOSSES = dict(
    attention=dict(type='InteractionAttentionLoss'),
    relation=dict(type='InteractionRelationLoss'),
    dynamics=dict(type='InteractionDynamicsLoss'),
)


@MODELS.register_module()
class ColourTeacher(FrozenTeacher):
    """Attends to the colour of a class, in each patch to its own pixels only.

    So a crop has the maps of the whole image, cropped, but for the patches' places.
    """

    patch = 4

    def __init__(self, side: int = 64, present: str = 'ground_truth') -> None:
        super().__init__(view=dict(size=side), present=present)
        self.grid_size = (side // self.patch,) * 2

    @property
    def num_layers(self) -> int:
        return 2

    @property
    def feature_dims(self) -> int | None:
        return 3

    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Class k is the k-th channel."""

    def interact(self, images, present) -> InteractionTargets:
        rgb = F.avg_pool2d(images * self.view.std + self.view.mean, self.patch)
        own = (1.5 * rgb - 0.5 * rgb.sum(1, keepdim=True)).clamp(min=0)
        layers = torch.stack([own**0.5 + 0.05, own + 0.01], 1)
        maps = layers / layers.sum((-2, -1), keepdim=True)
        features = torch.einsum('blthw,bchw->bltc', maps, rgb - rgb.mean())
        return InteractionTargets(maps=maps, present=present, features=features)


@pytest.fixture
def tiny(tmp_path):
    """Make configs that train with the teacher and from what it stored."""
    config = write_tiny_run(tmp_path, max_iters=3, batch_size=2)
    write_tiny_coco(tmp_path, num_images=6, size=SIZE)

    def make(teacher=None, transforms=(), losses=LOSSES, cached=None):
        cfg = Config.fromfile(config)
        cfg.model.teacher = dict(type='ColourTeacher', **(teacher or {}))
        cfg.model.distiller.losses = losses
        cfg.work_dir = str(tmp_path / 'work')
        pipeline = cfg.train_dataloader.dataset.pipeline
        pipeline[2:-1] = transforms  # nothing is resized
        if cached is not None:
            store = str(tmp_path / f'store_{cached}')
            if not os.path.exists(store):
                cache_targets(cfg, CachingOptions(out=store, dtype=cached))
            use_store(cfg, store)
        return cfg

    return make


def use_store(cfg, store):
    cfg.model.teacher = dict(
        type='CachedTeacher', store=store, teacher=cfg.model.teacher
    )
    cfg.train_dataloader.dataset.pipeline[-1:] = [
        dict(type='LoadCachedTargets', store=store),
        dict(type='PackInteractionInputs'),
    ]


def first_losses(cfg, batches=3):
    """Losses of a model before any step, for several batches of two images."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if model.teacher.class_names is None:
        model.set_class_names(dataset.metainfo['classes'])
    model.teacher.check_dataset(dataset)
    found = []
    for seed in range(batches):
        np.random.seed(seed)
        batch = pseudo_collate([dataset[2 * seed], dataset[2 * seed + 1]])
        batch = model.data_preprocessor(batch, training=True)
        torch.manual_seed(seed)
        with torch.no_grad():
            losses = model(**batch, mode='loss')
        found.append(
            {k: float(sum(v) if isinstance(v, list) else v) for k, v in losses.items()}
        )
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def difference(cfg, reference):
    """Largest relative difference of each loss of the distiller."""
    losses = first_losses(cfg)
    names = [name for name in losses if reference[name].any()]
    assert losses.keys() == reference.keys() and 'loss_lfi_attention' in names
    found = {k: abs(losses[k] / reference[k] - 1).max() for k in names if k != 'acc'}
    # the student itself sees the same
    assert all(not v for k, v in found.items() if not k.startswith('loss_lfi'))
    return {k[9:]: v for k, v in found.items() if k.startswith('loss_lfi')}


@pytest.mark.parametrize('present', ['ground_truth', 'all'])
def test_without_augmentation_losses_differ_by_rounding_only(tiny, present):
    online = first_losses(tiny(dict(present=present)))
    # what a store says of itself: at most 1% of a map moved, and 0.01%
    byte = difference(tiny(dict(present=present), cached='uint8'), online)
    assert max(byte['attention'], byte['dynamics']) < 0.01
    half = difference(tiny(dict(present=present), cached='float16'), online)
    assert max(half['attention'], half['dynamics']) < 3e-4 < byte['attention']
    if present == 'all':  # of two texts the only relation is always 1
        # cosines are rounded to 2^-11, and divided by the temperature, 0.1
        assert max(byte['relation'], half['relation']) < 0.005


@pytest.mark.parametrize(
    'transforms, side, attention, dynamics',
    [
        # to the bit the same maps, reversed
        ([dict(type='RandomFlip', prob=1.0)], 64, 0.005, 0.01),
        # the teacher sees pixels that were interpolated twice
        (RANDOM[:2], 64, 0.01, 0.02),
        # its patches lie elsewhere in a crop: those at the border of an object differ,
        # half as many of them where patches are half as large
        (RANDOM, 64, 0.08, 0.08),
        (RANDOM, 128, 0.03, 0.05),
    ],
    ids=['flip', 'resize', 'crop', 'crop, finer'],
)
def test_with_augmentation_losses_stay_close(
    tiny, monkeypatch, transforms, side, attention, dynamics
):
    options = dict(teacher=dict(side=side), transforms=transforms)
    options['losses'] = dict(LOSSES, relation=None)
    online = first_losses(tiny(**options))
    cached = difference(tiny(**options, cached='uint8'), online)
    assert cached['attention'] < attention and cached['dynamics'] < dynamics
    # what it would be if maps stayed where they are
    monkeypatch.setattr(
        load_cached_targets,
        'warp_maps',
        lambda maps, *_: (maps, np.ones(maps.shape[:2], bool)),
    )
    still = difference(tiny(**options, cached='uint8'), online)
    assert still['attention'] > 2.5 * cached['attention']


class Recorder(Hook):
    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        values = {name: float(value.detach()) for name, value in outputs.items()}
        self.losses.append(values)


def train(cfg, workers=0):
    """Losses of every iteration."""
    cfg = cfg.copy()
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
    cfg.default_hooks.checkpoint.interval = 100
    runner, recorder = Runner.from_cfg(cfg), Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder.losses


@pytest.mark.slow
def test_a_run_is_the_run_with_the_teacher(tiny):
    losses = dict(attention=LOSSES['attention'])
    online = train(tiny(losses=losses))
    cfg = tiny(losses=losses, cached='float16')
    cached = train(cfg)
    assert len(online) == len(cached) == 3
    for one, other in zip(online, cached):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=0.002, abs=1e-5), name
    # workers that were forked before the pipelines were checked
    assert train(cfg, workers=2) == cached


@pytest.mark.slow
def test_a_run_with_a_pipeline_that_could_drift_does_not_start(tiny):
    cfg = tiny(cached='uint8')
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomShift', prob=1.0))
    with pytest.raises(InputError, match=r'pipeline\.2: RandomShift moves pixels'):
        train(cfg)


TRAIN = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('open_clip', 'transformers'):
            raise ImportError(f'{name} is not installed')


sys.meta_path.insert(0, Blocker())

import torch
import lfi_mmdet
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.runner import Runner

from lfi_mmdet.engine.distributed import setup_distributed

config, folder = sys.argv[1:]
cfg = Config.fromfile(config)
cfg.work_dir, cfg.launcher = folder, 'pytorch'
setup_distributed(cfg, 'pytorch')
runner = Runner.from_cfg(cfg)
runner.train()
losses = runner.message_hub.get_scalar('train/loss_lfi_attention').data[0]
ids = sorted({int(i) for i in runner.train_dataloader.sampler})
state = runner.model.module.state_dict()
assert not any('teacher' in name for name in state)
torch.save((losses, ids, state), f'{folder}/rank{get_rank()}.pt')
"""
CACHED = """
model['teacher'] = dict(
    type='CachedTeacher', store={store!r}, teacher={teacher!r})
train_pipeline[-1:] = [
    dict(type='LoadCachedTargets', store={store!r}),
    dict(type='PackInteractionInputs')]
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=100)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without CUDA')
def test_two_processes_train_without_open_clip(tmp_path):
    teacher = dict(type='CLIPTeacher', model='ViT-B-16', pretrained='openai')
    pairs = [sorted(((i - 1) % 3, i % 3)) for i in range(1, 5)]
    records = {i: some_record(tuple(p), seed=i) for i, p in enumerate(pairs, 1)}
    store = write_store(tmp_path / 'store', records, teacher=teacher)
    config = write_tiny_run(
        tmp_path,
        batch_size=1,
        num_workers=1,
        extra=CACHED.format(store=store, teacher=teacher),
    )
    script = tmp_path / 'train_two.py'
    script.write_text(TRAIN)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    command += ['--master_port', str(free_port())]
    done = subprocess.run(
        [*command, str(script), str(config), str(tmp_path)],
        env=dict(
            os.environ, PYTHONPATH=str(Path(__file__).parents[2]), OMP_NUM_THREADS='1'
        ),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2))
    assert np.isfinite(first[0]).all() and len(first[0]) == 2
    assert not set(first[1]) & set(second[1])  # each has read images of its own
    for name, value in first[2].items():
        assert torch.equal(value, second[2][name]), name
