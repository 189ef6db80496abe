"""tools/export_student.py."""

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config

from tests.test_tools.conftest import call_tool, in_place
from tests.tiny import CLASSES, write_tiny_run

EXTRA = """
model['backbone'].update(feedback={feedback})
custom_hooks = [dict(type='EMAHook', momentum=0.5)]
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Folders of a training without and one with feedback, averaged by EMAHook."""
    folders = {}
    for feedback in (False, True):
        root = tmp_path_factory.mktemp(f'feedback_{feedback}')
        config = write_tiny_run(root, extra=EXTRA.format(feedback=feedback))
        with pytest.MonkeyPatch.context() as monkeypatch:
            in_place(monkeypatch, root)
            call_tool('train', config)
        folders[feedback] = root
    return folders


def checkpoint_of(root):
    return root / 'work_dirs' / 'tiny' / 'iter_2.pth'


@pytest.mark.parametrize('feedback', [False, True])
def test_mmdet_runs_the_exported_student_without_a_teacher(
    tool, trained, tmp_path, capsys, feedback
):
    root = trained[feedback]
    export = tool('export_student', checkpoint_of(root), 'student.pth')
    shown = capsys.readouterr().out
    assert ('without queries, which' in shown) != feedback
    assert 'averaged weights' in shown and 'student.py: its config' in shown
    model = init_detector(str(export.config), str(export.weights), device='cpu')
    assert type(model).__name__ == ('LFIMaskRCNN' if feedback else 'MaskRCNN')
    assert getattr(model, 'teacher', None) is None
    assert tuple(model.dataset_meta['classes']) == CLASSES
    found = inference_detector(model, str(root / 'train' / '0.png')).pred_instances
    assert found.masks.shape[1:] == (64, 64)
    before = torch.load(checkpoint_of(root), weights_only=False)
    assert export.size < 0.5 * checkpoint_of(root).stat().st_size
    name = 'backbone.blocks.0.mlp.fc1.weight'
    assert torch.equal(model.state_dict()[name], before['state_dict'][name])
    tool('export_student', checkpoint_of(root), 'last.pth', '--no-ema')
    last = torch.load('last.pth', weights_only=True)['state_dict'][name]
    assert torch.equal(last, before['ema_state_dict'][f'module.{name}'])
    assert not torch.equal(last, before['state_dict'][name])


@pytest.mark.parametrize('feedback', [False, True])
def test_mmdets_inferencer_takes_images_folders_and_frames(tool, trained, feedback):
    root = trained[feedback]
    export = tool('export_student', checkpoint_of(root), 'student.pth')
    infer = DetInferencer(str(export.config), str(export.weights), device='cpu')
    one = infer(str(root / 'train' / '0.png'))['predictions']
    assert len(one) == 1 and set(one[0]) >= {'labels', 'scores', 'bboxes', 'masks'}
    assert len(infer(str(root / 'train'))['predictions']) == 4
    # a video is read frame by frame, by mmcv.VideoReader for example
    frames = [np.full((64, 48, 3), value, np.uint8) for value in (0, 90, 200)]
    assert len(infer(frames, batch_size=2)['predictions']) == 3
    model = init_detector(str(export.config), str(export.weights), device='cpu')
    assert len(inference_detector(model, frames)) == 3


@pytest.mark.parametrize('feedback', [False, True])
def test_a_training_is_inferred_from_as_well_without_its_teacher(
    tool, trained, feedback
):
    root = trained[feedback]
    picture = str(root / 'train' / '0.png')
    config, weights = str(root / 'tiny.py'), str(checkpoint_of(root))
    without = {'model.teacher': None, 'model.distiller': None}
    model = init_detector(config, weights, device='cpu', cfg_options=without)
    assert model.teacher is None
    expected = inference_detector(model, picture).pred_instances
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(without)
    infer = DetInferencer(cfg, weights, device='cpu')
    (found,) = infer(picture)['predictions']
    assert found['scores'] == pytest.approx(expected.scores.tolist())
    # the exported student finds the same
    export = tool('export_student', checkpoint_of(root), 'student.pth')
    student = init_detector(str(export.config), str(export.weights), device='cpu')
    same = inference_detector(student, picture).pred_instances
    assert torch.equal(same.scores, expected.scores)


@pytest.mark.parametrize('feedback', [False, True])
def test_it_is_evaluated_as_the_checkpoint_is(tool, trained, feedback):
    root = trained[feedback]
    tool('export_student', checkpoint_of(root), 'student.pth')
    whole = tool('test', root / 'tiny.py', checkpoint_of(root))
    assert tool('test', 'student.py', 'student.pth') == whole


def test_a_config_can_be_named_and_changed(tool, trained):
    root = trained[True]
    export = tool(
        'export_student', checkpoint_of(root), 'student.pth', '--config',
        root / 'tiny.py', '--cfg-options', 'model.teacher.type=NoSuchTeacher',
        'model.test_cfg.rcnn.score_thr=0.5',
    )  # fmt: skip
    cfg = Config.fromfile(export.config)
    assert cfg.model.test_cfg.rcnn.score_thr == 0.5 and cfg.model.teacher is None


def test_bad_input_ends_in_one_line(refusal, trained):
    checkpoint = checkpoint_of(trained[True])
    assert 'no.pth: no such file' in refusal('export_student', 'no.pth', 'a.pth')
    options = ['--config', trained[False] / 'tiny.py']
    message = refusal('export_student', checkpoint, 'a.pth', *options)
    assert 'is not in the model' in message
    message = refusal('export_student', checkpoint, 'a.pth', '--config', 'no.py')
    assert 'config no.py: no such file' in message
    assert refusal('export_student', checkpoint, checkpoint).endswith(
        'is the checkpoint itself; choose another name'
    )


def test_options_without_a_config_are_refused_with_the_usage(tool, trained, capsys):
    with pytest.raises(SystemExit) as caught:
        tool('export_student', checkpoint_of(trained[True]), 'a.pth',
             '--cfg-options', 'a=1')  # fmt: skip
    assert caught.value.code == 2
    assert '--cfg-options needs --config' in capsys.readouterr().err
