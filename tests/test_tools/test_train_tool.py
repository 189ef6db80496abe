"""tools/train.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config

from tests.test_tools.conftest import TOOLS
from tests.tiny import write_tiny_run

DATASET = 'train_dataloader.dataset'


@pytest.fixture
def config(tmp_path):
    return write_tiny_run(tmp_path)


def files(root):
    return {str(path.relative_to(root)) for path in root.rglob('*')}


def test_training_writes_log_and_checkpoints_below_the_name_of_the_config(
    tool, config, tmp_path
):
    tool('train', config)
    run = tmp_path / 'work_dirs' / 'tiny'
    assert {'iter_1.pth', 'iter_2.pth', 'last_checkpoint', 'tiny.py'} <= files(run)
    (log,) = run.glob('*/*.log')
    assert 'loss_lfi_attention' in log.read_text()


def test_resume_continues_after_the_last_checkpoint_of_the_work_dir(
    tool, config, tmp_path
):
    run = tmp_path / 'run'
    tool('train', config, '--work-dir', run, '--cfg-options', 'train_cfg.max_iters=1')
    written = (run / 'iter_1.pth').stat().st_mtime_ns
    tool('train', config, '--work-dir', run, '--resume')
    assert (run / 'iter_1.pth').stat().st_mtime_ns == written
    state = torch.load(run / 'iter_2.pth')
    assert state['meta']['iter'] == 2
    steps = {int(entry['step']) for entry in state['optimizer']['state'].values()}
    assert steps == {2}


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_seed_that_no_config_gave(tool, tmp_path):
    seed_hook = "default_hooks.update(iteration_seed=dict(type='IterationSeedHook'))\n"
    config = write_tiny_run(
        tmp_path, num_workers=1, max_iters=8, extra='del randomness\n' + seed_hook
    )

    def losses(run):
        lines = max(run.glob('*/vis_data/scalars.json')).read_text().splitlines()
        entries = map(json.loads, lines)
        return {e['step']: e['loss'] for e in entries if 'loss' in e}

    tool('train', config, '--work-dir', tmp_path / 'whole')
    tool(
        'train', config, '--work-dir', tmp_path / 'resumed',
        '--resume', tmp_path / 'whole' / 'iter_1.pth',
    )  # fmt: skip
    whole, resumed = losses(tmp_path / 'whole'), losses(tmp_path / 'resumed')
    assert sorted(resumed) == list(range(2, 9))
    assert resumed == {step: whole[step] for step in resumed}


def done(run):
    """Iterations at the last checkpoint, or 0 while its name is being written."""
    match = re.search(r'iter_(\d+)\.pth$', (run / 'last_checkpoint').read_text())
    return int(match.group(1)) if match else 0


@pytest.mark.slow
def test_with_nothing_to_resume_a_training_starts_where_load_from_says(
    tool, config, tmp_path
):
    tool('train', config, '--work-dir', tmp_path / 'first')
    start = tmp_path / 'first' / 'iter_1.pth'
    still = 'optim_wrapper.optimizer.lr=0.0'
    option = f'load_from={start}'
    run = tmp_path / 'second'
    tool('train', config, '--work-dir', run, '--resume', '--cfg-options', option, still)
    name = 'backbone.queries'
    before, after = (
        torch.load(path, weights_only=False)['state_dict'][name]
        for path in (start, run / 'iter_1.pth')
    )
    assert torch.equal(before, after)
    # a second time there is something to resume
    tool('train', config, '--work-dir', run, '--resume', '--cfg-options', option,
         'train_cfg.max_iters=3')  # fmt: skip
    assert (run / 'iter_3.pth').is_file()
    logs = [path.read_text() for path in run.glob('*/*.log')]
    assert sum('resumed epoch: 0, iter: 2' in text for text in logs) == 1


def test_a_killed_training_is_resumed(tool, config, tmp_path):
    run = tmp_path / 'run'
    process = subprocess.Popen(
        [sys.executable, TOOLS / 'train.py', config, '--work-dir', run]
        + ['--cfg-options', 'train_cfg.max_iters=10000'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not (run / 'last_checkpoint').exists() or not done(run):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = done(run)
    option = f'train_cfg.max_iters={last + 1}'
    tool('train', config, '--work-dir', run, '--resume', '--cfg-options', option)
    assert torch.load(run / f'iter_{last + 1}.pth')['meta']['iter'] == last + 1


def test_amp_on_a_cpu_trains_in_bfloat16_and_the_log_says_so(
    tool, config, tmp_path, monkeypatch
):
    monkeypatch.setattr('lfi_mmdet.engine.amp.get_device', lambda: 'cpu')
    run = tmp_path / 'run'
    tool('train', config, '--amp', '--work-dir', run)
    (log,) = run.glob('*/*.log')
    assert 'autocast in bfloat16 on the CPU' in log.read_text()
    kept = Config.fromfile(run / 'tiny.py').optim_wrapper
    assert kept.type == 'lfi_mmdet.engine.amp.BFloat16OptimWrapper'
    weights = torch.load(run / 'iter_2.pth')['state_dict'].values()
    assert all(torch.isfinite(weight).all() for weight in weights)


def test_a_checkpoint_for_other_classes_is_a_start_for_fine_tuning(
    tool, config, tmp_path
):
    tool('train', config, '--cfg-options', 'train_cfg.max_iters=1')
    start = tmp_path / 'work_dirs' / 'tiny' / 'iter_1.pth'
    run = tmp_path / 'run'
    shutil.rmtree(tmp_path / 'train')
    finer = write_tiny_run(tmp_path, classes=('red', 'green'), max_iters=1)
    tool('train', finer, '--work-dir', run, '--cfg-options', f'load_from={start}')
    (log,) = run.glob('*/*.log')
    assert 'is for other classes' in log.read_text()
    assert (
        torch.load(run / 'iter_1.pth')['state_dict']['backbone.queries'].shape[0] == 2
    )


def test_auto_scale_lr_scales_by_the_batch_size(tool, config, tmp_path):
    options = ['auto_scale_lr.enable=False', 'auto_scale_lr.base_batch_size=4']
    options += ['train_cfg.max_iters=1']
    tool('train', config, '--auto-scale-lr', '--cfg-options', *options)
    state = torch.load(tmp_path / 'work_dirs' / 'tiny' / 'iter_1.pth')
    assert {g['lr'] for g in state['optimizer']['param_groups']} == {0.5e-3}


# -- bad input: one message, nothing started -------------------------------------------
@pytest.mark.parametrize(
    'argv, message',
    [
        (
            ['--resume', 'no.pth'],
            r'^error: resume=no\.pth: no such file; checkpoints in',
        ),
        (['--cfg-options', 'load_from=no.pth'], r'load_from=no\.pth: no such file'),
        (['--auto-scale-lr'], r'--auto-scale-lr: auto_scale_lr=None in .*tiny\.py'),
        (
            ['--cfg-options', f'{DATASET}.ann_file=no.json'],
            rf'{DATASET}\.ann_file: no file .*no\.json',
        ),
        (
            ['--cfg-options', 'val_dataloader.dataset.data_prefix.img=no/'],
            r'val_dataloader\.dataset\.data_prefix\.img: no folder .*no/',
        ),
        (
            ['--cfg-options', f'{DATASET}.metainfo.classes=[red,gren,blue]'],
            rf"{DATASET}\.metainfo\.classes: .*train\.json has no 'gren'; "
            "its categories are 'red', 'green', 'blue'",
        ),
        (
            ['--cfg-options', f'{DATASET}.type=CocoDatset'],
            rf"{DATASET}\.type='CocoDatset' .* choose from .*'CocoDataset'",
        ),
        (
            ['--amp', '--cfg-options', 'optim_wrapper.type=ApexOptimWrapper'],
            "--amp: optim_wrapper.type='ApexOptimWrapper' .*'AmpOptimWrapper'",
        ),
    ],
)
def test_bad_input_ends_with_one_message_before_anything_is_written(
    refusal, config, tmp_path, argv, message
):
    before = files(tmp_path)
    assert re.search(message, refusal('train', config, *argv))
    assert files(tmp_path) == before


def test_a_missing_config_is_named_with_its_neighbours(refusal, config, tmp_path):
    message = refusal('train', tmp_path / 'tini.py')
    assert re.search(
        r'config .*tini\.py: no such file; configs in .*: tiny\.py', message
    )


def test_a_config_with_a_syntax_error_is_named(refusal, tmp_path):
    (tmp_path / 'bad.py').write_text('model = dict(\n')
    assert 'bad.py cannot be read: ' in refusal('train', 'bad.py')


def test_missing_images_are_counted_and_some_are_named(refusal, config, tmp_path):
    os.remove(tmp_path / 'train' / '2.png')
    assert re.search(
        r"1 of 4 images of .*train\.json are missing: '.*2\.png'",
        refusal('train', config),
    )


def test_a_moved_work_dir_is_not_taken_for_a_new_training(refusal, config, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'last_checkpoint').write_text('/elsewhere/iter_1.pth')
    (run / 'iter_1.pth').touch()
    message = refusal('train', config, '--work-dir', run, '--resume')
    assert 'names /elsewhere/iter_1.pth, which does not exist' in message
    assert message.endswith('iter_1.pth')


@pytest.mark.parametrize(
    'option, message',
    [
        (
            'model.distiller.losses.attention.type=InteractionAttentoinLoss',
            r"distiller\.losses\.attention\.type='InteractionAttentoinLoss' .*did you "
            "mean 'InteractionAttentionLoss'",
        ),
        (
            'model.teacher.type=CocaTeacher',
            "model.teacher.type='CocaTeacher'.*CoCaTeach",
        ),
        (
            'model.backbone.interaction_layers=[0,7]',
            r'interaction_layers=.*no block \[7\]',
        ),
        ('model.neck.type=SimpelFPN', "'SimpelFPN' .*did you mean 'SimpleFPN'"),
        ('model.backbone.num_querys=3', 'InteractionViT.*unexpected .*num_querys'),
        (
            'model.roi_head.bbox_head.num_classes=7',
            'has 3 classes .* but .*num_classes=7',
        ),
    ],
)
def test_what_only_building_can_find_is_one_message_too(
    refusal, config, tmp_path, option, message
):
    assert re.search(message, refusal('train', config, '--cfg-options', option))
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_image_is_named(refusal, config, tmp_path, workers):
    (tmp_path / 'train' / '1.png').write_bytes(b'nonsense')
    option = f'train_dataloader.num_workers={workers}'
    message = refusal('train', config, '--cfg-options', option)
    assert re.search(r'train/1\.png cannot be decoded as an image', message)


def test_the_latest_checkpoint_is_checked_like_a_named_one(tool, config, tmp_path):
    run = tmp_path / 'run'
    tool('train', config, '--work-dir', run, '--cfg-options', 'train_cfg.max_iters=1')
    resume = ['train', config, '--work-dir', run, '--resume']
    with pytest.raises(SystemExit, match=r'iter_1\.pth is for a model of another size'):
        tool(*resume, '--cfg-options', 'model.roi_head.bbox_head.fc_out_channels=48')
    cut = (run / 'iter_1.pth').read_bytes()[:5000]
    (run / 'iter_1.pth').write_bytes(cut)
    with pytest.raises(SystemExit, match=r'iter_1\.pth cannot be read'):
        tool(*resume)


def test_broken_weights_for_the_backbone_are_named(refusal, config, tmp_path):
    (tmp_path / 'vit.pth').write_bytes(b'PK\x03\x04 and no more')
    options = ['type=Pretrained', 'checkpoint=vit.pth']
    message = refusal(
        'train', config, '--cfg-options',
        *(f'model.backbone.init_cfg.{option}' for option in options),
    )  # fmt: skip
    assert message.startswith('error: checkpoint vit.pth cannot be read')


def test_an_annotation_without_a_mask_is_named_before_training(
    refusal, config, tmp_path
):
    path = tmp_path / 'train.json'
    content = json.loads(path.read_text())
    del content['annotations'][1]['segmentation']
    path.write_text(json.dumps(content))
    message = refusal('train', config)
    assert re.search(r'train\.json: annotations\[1\] has no segmentation', message)


def test_a_config_that_names_what_it_does_not_have_is_one_message(refusal, tmp_path):
    (tmp_path / 'bad.py').write_text('model = dict(type=MaskRCNN)\n')
    assert 'bad.py cannot be read: NameError' in refusal('train', 'bad.py')


def test_two_packages_that_register_the_same_name_are_one_message(
    refusal, tmp_path, monkeypatch
):
    (tmp_path / 'package_of_another.py').write_text(
        'from mmdet.registry import MODELS\n'
        "MODELS.register_module(name='InteractionViT', module=dict)\n"
    )
    (tmp_path / 'both.py').write_text(
        "custom_imports = dict(imports=['lfi_mmdet', 'package_of_another'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal('train', 'both.py')
    assert re.search(
        r'both.py cannot be read.*InteractionViT is already registered.* at lfi_mmdet',
        message,
    )


def test_a_truncated_checkpoint_is_not_resumed(refusal, config, tmp_path):
    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04 and no more')
    message = refusal('train', config, '--resume', 'cut.pth')
    assert message.startswith('error: checkpoint cut.pth cannot be read')


def test_options_that_are_no_pairs_are_refused_with_the_usage(tool, config, capsys):
    with pytest.raises(SystemExit) as caught:
        tool('train', config, '--cfg-options', 'oops')
    assert caught.value.code == 2
    assert "'oops' is not of the form KEY=VALUE" in capsys.readouterr().err


def test_an_unknown_error_keeps_its_traceback(tool, config, monkeypatch):
    def broken(*args):
        raise RuntimeError('a bug')

    monkeypatch.setattr('mmengine.runner.Runner.train', broken)
    with pytest.raises(RuntimeError, match='a bug'):
        tool('train', config)


def test_a_process_says_its_number_with_what_only_it_may_have_met(
    refusal, config, monkeypatch
):
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setattr('lfi_mmdet.engine.plain_errors._PATIENCE', 0)
    message = refusal('train', config, '--launcher', 'pytorch', '--auto-scale-lr')
    assert message.endswith('(said by process 1)')
