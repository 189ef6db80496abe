"""tools/study.py and tools/report.py."""

import json
import re

import pytest
import yaml

from tests.test_tools.conftest import TOOLS

SMOKE = TOOLS.parent / 'configs' / 'studies' / 'smoke.yaml'
LFI = 'configs/lfi/mask-rcnn_vit-mini_lfi_shapes.py'


def write_study(folder, **changes):
    """The study of `make study-smoke`, reduced, and with a pre-training."""
    content = yaml.safe_load(SMOKE.read_text())
    size = {
        'model.backbone.pretrain_img_size': 64,
        'train_dataloader.dataset.pipeline.2.scale': [64, 64],
        'train_dataloader.batch_size': 2,
    }
    content.update(seeds=[0], iterations=4, val_interval=2, stage_options=size)
    content['settings']['scenes']['scenes'].update(train=8, val=4)
    content['settings']['scenes']['labels'] = 0.5
    content['arms']['pre'] = dict(
        config=LFI,
        stages=[dict(name='pre', config=LFI, iterations=2, feeds='load_from')],
    )
    content.update(changes)
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def read(work):
    lines = (work / 'results.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_reduced_study_runs_and_its_report_is_made(tool, tmp_path, capsys):
    study, work, out = write_study(tmp_path), tmp_path / 'work', tmp_path / 'out'
    arguments = study, '--work-dir', work, '--jobs', '2', '--threads', '1'
    assert tool('study', *arguments) == 0
    lines = read(work)
    runs = [line for line in lines if line['kind'] == 'run']
    assert [line['iteration'] for line in runs] == [2, 4] * 3
    assert {line['status'] for line in runs} == {'finished'}
    assert {frozenset(line['metrics']) for line in runs[1::2]} == {
        frozenset({'val', 'line'})
    }
    # all arms began with the twin's weights and saw the same images in the same order
    for key in ('start_weights_hash', 'order_hash', 'labelled_images_seen'):
        assert len({line[key] for line in runs}) == 1, key
    ends = {line['arm']: line for line in runs[1::2]}
    assert ends['twin']['start_weights']['new'] == 0
    assert ends['lfi']['start_weights']['new'] > 0
    assert ends['pre']['start_weights']['shared'] == 0
    assert [ends[arm]['pretrain_iters'] for arm in ('twin', 'lfi', 'pre')] == [0, 0, 2]
    # no folder of this machine gets into what may be published
    assert str(tmp_path) not in (work / 'results.jsonl').read_text()
    assert not [*work.glob('**/iter_*.pth')]

    assert tool('study', *arguments) == 0
    assert read(work) == lines

    assert (
        tool('report', work / 'results.jsonl', '--out', out, '--require-finished') == 0
    )
    text = (out / 'report.md').read_text()
    assert '3 of 3 runs finished' in text and 'pre: 2 iterations of pre-train' in text
    assert (out / 'convergence_scenes.png').stat().st_size > 1000

    # the start weights are those of the seed, whoever is asked first
    write_study(tmp_path, iterations=6)
    with pytest.raises(SystemExit, match='3 trainings that ended had another config'):
        tool('study', *arguments)


def test_list_and_dry_run_start_nothing(tool, tmp_path, capsys):
    work = tmp_path / 'work'
    arguments = write_study(tmp_path), '--work-dir', work, '--arms', 'twin,pre'
    assert tool('study', *arguments, '--list') == 0
    told = capsys.readouterr().out
    assert re.findall(r'(\S+/seed0)\s+\|\s+(\d+)\s+\| open', told)[0][1] == '4'
    assert 'scenes/lfi' not in told and 'stages/pre-' in told
    assert tool('study', *arguments, '--dry-run') == 0
    assert 'tools/train.py' in capsys.readouterr().out
    assert not (work / 'runs').exists() and not (work / 'results.jsonl').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--arms', 'lif'], r"--arms: 'lif' is none of \['twin', 'lfi', 'pre'\]"),
        (['--seeds', '7'], r'--seeds: 7 is none of \[0\]'),
        (['--settings', 'x'], r"--settings: 'x' is none of \['scenes'\]"),
    ],
)
def test_a_part_that_the_study_does_not_have_is_refused(
    refusal, tmp_path, arguments, message
):
    study = write_study(tmp_path)
    assert re.search(
        message, refusal('study', study, '--work-dir', tmp_path, *arguments)
    )


def test_data_without_workers_would_not_be_paired(refusal, tmp_path):
    study = write_study(tmp_path, options={'train_dataloader.num_workers': 0})
    message = refusal('study', study, '--work-dir', tmp_path / 'w', '--list')
    assert 'train_dataloader.num_workers=0' in message


def test_a_report_of_nothing_is_refused(refusal, tmp_path):
    assert 'no such file' in refusal('report', tmp_path / 'x', '--out', tmp_path / 'o')
