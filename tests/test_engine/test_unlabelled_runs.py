"""Whole runs on images without labels: pre-training, fine-tuning, mixed batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner

from lfi_mmdet.models.utils import vit_checkpoint
from tests.test_engine.test_runs import FLIP, SEED, train
from tests.test_tools.conftest import call_tool, in_place
from tests.tiny import CLASSES, write_tiny_coco, write_tiny_run
from tests.unlabelled import write_mixed, write_pretraining

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Call a tool in ``tmp_path``, as in tests of the tools."""
    in_place(monkeypatch, tmp_path)
    return call_tool


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def fine_tuning(root, checkpoint, alone) -> Config:
    """A detector that starts from a pre-training."""
    cfg = Config.fromfile(write_tiny_run(root))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    if alone:
        cfg.model.teacher = cfg.model.distiller = None
    return cfg


def test_a_pretraining_leaves_a_student_that_resumes_and_holds_no_teacher(
    tool, tmp_path
):
    config, run = write_pretraining(tmp_path), tmp_path / 'run'
    tool('train', config, '--work-dir', run)
    assert (run / 'last_checkpoint').read_text().endswith('iter_2.pth')
    names = set(weights(run / 'iter_2.pth'))
    assert names and all(name.startswith('backbone.') for name in names)
    (scalars,) = run.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert [entry['step'] for entry in entries] == [1, 2]
    assert all('loss_lfi_attention' in entry for entry in entries)
    tool('train', config, '--work-dir', run, '--resume', '--cfg-options',
         'train_cfg.max_iters=3')  # fmt: skip
    assert torch.load(run / 'iter_3.pth', weights_only=False)['meta']['iter'] == 3


@pytest.mark.parametrize('alone', [True, False], ids=['labels alone', 'joint'])
def test_a_detector_starts_from_the_pretrained_queries_and_blocks(tmp_path, alone):
    train(Config.fromfile(write_pretraining(tmp_path)), tmp_path / 'run')
    checkpoint = tmp_path / 'run' / 'iter_2.pth'
    saved = weights(checkpoint)
    cfg = fine_tuning(tmp_path, checkpoint, alone)
    torch.manual_seed(5)
    model = MODELS.build(cfg.model)
    model.init_weights()
    state = model.state_dict()
    assert {'backbone.queries', 'backbone.interaction.read_query.weight'} <= set(saved)
    assert {k for k in state if k.startswith('backbone.')} == set(saved)
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    torch.manual_seed(5)
    cfg.model.backbone.init_cfg = None
    fresh = MODELS.build(cfg.model)
    fresh.init_weights()
    assert not torch.equal(fresh.backbone.queries, model.backbone.queries)
    for name, value in fresh.state_dict().items():  # FPN and heads as without it
        if not name.startswith('backbone.'):
            assert torch.equal(value, state[name]), name
    losses = train(fine_tuning(tmp_path, checkpoint, alone), tmp_path / 'detector')
    assert sorted(losses) == [1, 2] and 'loss_mask' in losses[1]


def test_a_plain_detector_is_told_which_pretrained_weights_it_drops(
    tmp_path, monkeypatch
):
    train(Config.fromfile(write_pretraining(tmp_path)), tmp_path / 'run')
    cfg = fine_tuning(tmp_path, tmp_path / 'run' / 'iter_2.pth', alone=True)
    cfg.model.backbone.num_queries = 0
    told = []
    monkeypatch.setattr(
        vit_checkpoint, 'print_log', lambda text, **kwargs: told.append(text)
    )
    MODELS.build(cfg.model).init_weights()
    assert 'trained with queries, but this backbone has none' in told[0]


@pytest.mark.parametrize(
    'write, workers', [(write_pretraining, 1), (write_mixed, 1)], ids=['alone', 'mixed']
)
@pytest.mark.slow
def test_a_resumed_run_repeats_an_uninterrupted_one(tmp_path, write, workers):
    # branches begin with the packing, so the flip comes before them
    flip = FLIP if write is write_pretraining else ''
    flip = flip.replace('insert(3', 'insert(2')
    cfg = Config.fromfile(
        write(tmp_path, flip + SEED, max_iters=4, num_workers=workers)
    )
    whole = train(cfg, tmp_path / 'whole')
    resumed = train(
        cfg,
        tmp_path / 'resumed',
        resume=True,
        load_from=str(tmp_path / 'whole' / 'iter_2.pth'),
    )
    assert sorted(whole) == [1, 2, 3, 4] and sorted(resumed) == [3, 4]
    for step, losses in resumed.items():
        assert losses == whole[step], step


def test_mixed_batches_train_evaluate_and_are_tested_with_plain_batches(tool, tmp_path):
    config, run = write_mixed(tmp_path, max_iters=2), tmp_path / 'run'
    tool('train', config, '--work-dir', run, '--cfg-options',
         'train_cfg.val_interval=2')  # fmt: skip
    (scalars,) = run.glob('*/vis_data/scalars.json')
    text = scalars.read_text()
    assert '"unsup_loss_lfi_attention"' in text and '"coco/segm_mAP"' in text
    names = set(weights(run / 'iter_2.pth'))
    assert not any(name.startswith(('teacher', 'data_pre')) for name in names)
    tool('test', config, run / 'iter_2.pth', '--work-dir', tmp_path / 'test')


def test_batches_of_another_size_than_the_samplers_are_refused(tool, tmp_path):
    config = write_mixed(tmp_path)
    with pytest.raises(SystemExit, match=r'batch_size=6, but its sampler mixes .*=4'):
        tool('train', config, '--work-dir', tmp_path / 'run', '--cfg-options',
             'train_dataloader.batch_size=6')  # fmt: skip


@pytest.mark.parametrize('write', [write_pretraining, write_mixed])
def test_a_teacher_that_needs_labels_is_refused_before_the_first_iteration(
    tool, tmp_path, write
):
    config = write(tmp_path)
    with pytest.raises(SystemExit, match=r'no image of .*unlabelled.json has a label'):
        tool('train', config, '--work-dir', tmp_path / 'run', '--cfg-options',
             'model.teacher.present=ground_truth')  # fmt: skip


def test_the_masks_of_labelled_images_may_teach_a_pretraining(tmp_path):
    write_tiny_coco(tmp_path)
    extra = """
model['teacher'] = dict(type='GroundTruthTeacher', grid_size=8, blur=(1.0, 0.5))
train_dataloader['dataset'].update(
    ann_file='train.json', data_prefix=dict(img='train/'))
train_pipeline.insert(1, dict(type='LoadAnnotations', with_bbox=True, with_mask=True))
"""
    losses = train(
        Config.fromfile(write_pretraining(tmp_path, extra)), tmp_path / 'run'
    )
    assert losses[2]['loss_lfi_attention'] > 0


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('write', [write_pretraining, write_mixed])
@pytest.mark.parametrize('feedback', [True, False])
@pytest.mark.parametrize('schedule', [{}, dict(stop=2)])
def test_ddp_trains_without_looking_for_unused_parameters(
    tmp_path, process_group, write, feedback, schedule
):
    cfg = Config.fromfile(write(tmp_path))
    cfg.model.backbone.feedback = feedback
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.set_class_names(CLASSES)
    ddp = MMDistributedDataParallel(
        model, find_unused_parameters=False, broadcast_buffers=False
    )
    loader = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
    for iteration in range(2):
        if schedule:
            model.distiller.schedule.current = lambda i=iteration: float(i == 0)
        data = ddp.module.data_preprocessor(next(loader), True)
        total, _ = model.parse_losses(ddp(**data, mode='loss'))
        # a parameter without gradient makes the second forward pass fail
        total.backward()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without CUDA')
@pytest.mark.parametrize('write', [write_pretraining, write_mixed])
def test_two_processes_train(tmp_path, write):
    config = write(tmp_path, "custom_imports['imports'].append('tests.unlabelled')\n")
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    command += ['--master_port', str(port), str(ROOT / 'tools' / 'train.py')]
    command += [str(config), '--launcher', 'pytorch', '--work-dir', str(tmp_path / 'r')]
    done = subprocess.run(
        command,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'r' / 'iter_2.pth').is_file()


@pytest.mark.parametrize('write', [write_pretraining, write_mixed])
def test_a_cache_stands_in_for_the_teacher(tool, tmp_path, write):
    config, store = write(tmp_path), tmp_path / 'store'
    cfg = Config.fromfile(config)
    online = train(cfg, tmp_path / 'online')
    tool('cache_teacher', config, '--out', store, '--dtype', 'float16', '--features')
    cfg.model.teacher = dict(
        type='CachedTeacher', store=str(store), teacher=cfg.model.teacher
    )
    dataset = cfg.train_dataloader.dataset
    for part in dataset.get('datasets', [dataset]):
        last = part.pipeline.pop()
        pack = last
        if last.type == 'MultiBranch':
            pack = last[next(b for b in last.branch_field if b in last)]
        pack.type = 'PackInteractionInputs'
        part.pipeline += [dict(type='LoadCachedTargets', store=str(store)), last]
    cached = train(cfg, tmp_path / 'cached')
    for name, value in online[1].items():
        assert cached[1][name] == pytest.approx(value, rel=0.01, abs=1e-4), name
