"""tools/deploy.py."""

import importlib.util

import mmcv
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets.transforms import Resize
from mmengine.config import Config

from lfi_mmdet.engine.deploy import (
    DeployedDetector,
    compare,
    deployment,
    pipeline_facts,
)
from lfi_mmdet.engine.preflight import InputError
from tests.test_tools.conftest import call_tool, in_place
from tests.tiny import CLASSES, write_tiny_run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Folder of a training of a ViT whose queries write back to the patches."""
    root = tmp_path_factory.mktemp('trained')
    # the scores of two steps are low
    extra = "model['test_cfg']['rcnn'].update(score_thr=0.2)"
    config = write_tiny_run(root, extra=extra)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_place(monkeypatch, root)
        call_tool('train', config)
    return root


def inputs(root):
    return root / 'tiny.py', root / 'work_dirs' / 'tiny' / 'iter_2.pth'


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_a_training_is_deployed_and_finds_what_it_found(tool, trained, capsys, suffix):
    config, checkpoint = inputs(trained)
    picture = trained / 'train' / '0.png'
    told = tool('deploy', config, checkpoint, f'a{suffix}', '--shape', 64, 64,
                '--images', picture)  # fmt: skip
    shown = capsys.readouterr().out
    assert f'a{suffix}: ' in shown and f'{picture}: ' in shown
    (agreement,) = told.agreements.values()
    assert agreement.detections > 0 and agreement.alone == 0
    deployed = DeployedDetector(told.file)
    assert deployed.description.classes == CLASSES
    model = init_detector(str(config), str(checkpoint), device='cpu')
    expected = inference_detector(model, str(picture)).pred_instances
    found = deployed(mmcv.imread(picture))
    assert compare(expected, found).within(boxes=0.1, scores=1e-3, masks=1e-2)


def test_an_exported_student_is_deployed_as_well(tool, trained, capsys):
    config, checkpoint = inputs(trained)
    tool('export_student', checkpoint, 'student.pth')
    told = tool('deploy', 'student.py', 'student.pth', 'b.pt2', '--shape', 64, 64)
    assert told.file.is_file()
    # noise, in the shape of the graph
    assert list(told.agreements) == ['noise']
    nothing = 'model.test_cfg.rcnn.score_thr=0.999'
    told = tool('deploy', 'student.py', 'student.pth', 'c.pt2', '--shape', 64, 64,
                '--cfg-options', nothing)  # fmt: skip
    assert not told.compared
    assert 'NOT COMPARED' in capsys.readouterr().out


def test_without_a_shape_images_are_what_the_test_pipeline_makes_of_them(tool, trained):
    config, checkpoint = inputs(trained)
    told = tool('deploy', config, checkpoint, 'c.pt2')
    assert DeployedDetector(told.file).description.shape == (64, 64)


def test_the_pipeline_says_how_an_image_is_brought_to_its_shape():
    def steps(*pipeline, wrap=False):
        dataset = dict(pipeline=list(pipeline))
        if wrap:
            dataset = dict(datasets=[dataset])
        model = dict(data_preprocessor=dict(pad_size_divisor=32))
        return Config(dict(test_dataloader=dict(dataset=dataset), model=model))

    shape = deployment.tested_shape
    both = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    assert shape(steps(both)) == (800, 1344)
    assert shape(steps(dict(both, type='mmdet.Resize'), wrap=True)) == (
        800,
        1344,
    )
    assert shape(steps(dict(both, type=Resize))) == (800, 1344)
    assert shape(steps(dict(both, scale=640))) == (640, 640)
    fixed = dict(type='FixShapeResize', width=100, height=64)
    assert shape(steps(fixed)) == (64, 128)
    for wrong in (dict(both, scale=[(1, 2), (3, 4)]), dict(type='Flip')):
        with pytest.raises(InputError, match='pass --shape'):
            shape(steps(wrong))
    assert pipeline_facts(steps(both)) == dict(keep_ratio=True)
    assert pipeline_facts(steps(dict(type='Resize', scale=9))) == dict(keep_ratio=False)
    pad = dict(type='Pad', size=(640, 640), pad_val=dict(img=(114, 114, 114)))
    assert pipeline_facts(steps(both, pad))['pad'] == (114, 114, 114)
    assert pipeline_facts(steps(dict(pad, pad_val=7)))['pad'] == (7, 7, 7)


def test_a_pipeline_without_a_resize_needs_a_shape(trained, refusal):
    nothing = 'test_dataloader.dataset.pipeline=[]'
    said = refusal('deploy', *inputs(trained), 'd.pt2', '--cfg-options', nothing)
    assert '--shape HEIGHT WIDTH' in said


def test_what_cannot_be_deployed_is_refused_and_leaves_no_file(
    trained, refusal, tmp_path, monkeypatch
):
    config, checkpoint = inputs(trained)
    given = (config, checkpoint)
    assert "'.trt' names no format; choose .onnx" in refusal('deploy', *given, 'a.trt')
    assert '--images none.png does not exist' in refusal(
        'deploy', *given, 'a.pt2', '--images', 'none.png'
    )
    assert 'is no size' in refusal('deploy', *given, 'a.pt2', '--shape', 0, 64)
    said = refusal('deploy', *given, 'a.pt2', '--shape', 60, 64)
    assert 'pad_size_divisor=16, such as 64 64' in said
    assert 'no such file' in refusal('deploy', config, 'none.pth', 'a.pt2')
    (tmp_path / 'b.pt2').write_text('mine')
    assert '--force' in refusal('deploy', *given, 'b.pt2')
    assert (tmp_path / 'b.pt2').read_text() == 'mine'
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util,
            'find_spec',
            lambda name: None if name == 'onnx' else find(name),
        )
        assert 'ONNX needs onnx: pip install' in refusal('deploy', *given, 'a.onnx')
    assert [path.name for path in tmp_path.iterdir()] == ['b.pt2']


def test_a_file_that_would_find_something_else_is_not_written(
    trained, refusal, tmp_path, monkeypatch
):
    config, checkpoint = inputs(trained)
    export = deployment.export_program

    def another(detector, shape, max_candidates):
        with torch.no_grad():
            weight = detector.roi_head.bbox_head.fc_cls.weight
            before = weight.clone()
            weight.add_(torch.randn_like(weight), alpha=0.3)
            program = export(detector, shape, max_candidates)
            # the program shares its weights with the detector
            detector.roi_head.bbox_head.fc_cls.weight = torch.nn.Parameter(before)
        return program

    monkeypatch.setattr(deployment, 'export_program', another)
    said = refusal(
        'deploy', config, checkpoint, 'a.pt2', '--images', trained / 'train' / '0.png'
    )
    assert 'a.pt2 was not written' in said and 'largest differences' in said
    assert list(tmp_path.iterdir()) == []
