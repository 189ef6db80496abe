"""tools/test.py."""

import pickle
import re

import pytest

from tests.test_tools.conftest import call_tool, in_place
from tests.tiny import write_tiny_run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config and checkpoint of a training of one iteration."""
    root = tmp_path_factory.mktemp('trained')
    config = write_tiny_run(root, max_iters=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_place(monkeypatch, root)
        call_tool('train', config)
    return config, root / 'work_dirs' / 'tiny' / 'iter_1.pth'


def test_a_checkpoint_is_evaluated_without_its_teacher(tool, trained):
    # this teacher could not be built
    options = ['model.teacher.type=CLIPTeacher', 'model.teacher.pretrained=no.pt']
    metrics = tool('test', *trained, '--cfg-options', *options)
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()


def test_predictions_are_written_in_whole(tool, trained, tmp_path):
    tool('test', *trained, '--out', 'found.pkl')
    with open('found.pkl', 'rb') as file:
        found = pickle.load(file)
    assert len(found) == 4
    assert {'bboxes', 'scores', 'labels', 'masks'} <= found[0]['pred_instances'].keys()
    assert [path.name for path in tmp_path.glob('*.pkl')] == ['found.pkl']


def test_predictions_are_drawn(tool, trained, tmp_path):
    tool('test', *trained, '--show-dir', 'drawn')
    drawn = tmp_path.glob('work_dirs/tiny/*/drawn/*')
    assert {path.name for path in drawn} == {'0.png', '1.png', '2.png', '3.png'}


def test_boxes_are_merged_over_flips(tool, trained):
    option = 'test_evaluator.metric=bbox'
    metrics = tool('test', *trained, '--tta', '--cfg-options', option)
    assert 'coco/bbox_mAP' in metrics


def test_masks_cannot_be_merged_over_flips(refusal, trained):
    assert 'test_evaluator.metric=bbox' in refusal('test', *trained, '--tta')


def test_a_missing_checkpoint_is_found_before_the_dataset_is_read(refusal, trained):
    option = 'test_dataloader.dataset.ann_file=no.json'
    message = refusal('test', trained[0], 'no.pth', '--cfg-options', option)
    assert message.startswith('error: checkpoint=no.pth: no such file')


def test_missing_annotations_are_found_before_the_model_is_built(refusal, trained):
    options = ['test_dataloader.dataset.ann_file=no.json', 'model.type=NoSuchModel']
    message = refusal('test', *trained, '--cfg-options', *options)
    assert re.search(r'test_dataloader\.dataset\.ann_file: no file .*no\.json', message)


@pytest.mark.parametrize(
    'options, message',
    [
        (
            ['model.roi_head.bbox_head.fc_out_channels=48'],
            r'iter_1\.pth is for a model of another size: roi_head\.bbox_head\.fc_cls\.'
            r'weight has shape \(4, 32\), the model needs \(4, 48\)',
        ),
        (
            ['model.backbone.arch.num_layers=3'],
            r'another model: backbone\.blocks\.2\.\S+ is not in the checkpoint',
        ),
        (
            [
                'model.backbone.arch.num_layers=1',
                'model.backbone.global_layers=[0]',
                'model.backbone.interaction_layers=[0]',
            ],
            r'another model: backbone\.blocks\.1\.\S+ is not in the model',
        ),
    ],
)
def test_a_checkpoint_for_another_size_is_refused(refusal, trained, options, message):
    assert re.search(message, refusal('test', *trained, '--cfg-options', *options))


def test_a_dump_that_is_no_pickle_is_refused_with_the_usage(tool, trained, capsys):
    with pytest.raises(SystemExit) as caught:
        tool('test', *trained, '--out', 'found.txt')
    assert caught.value.code == 2
    assert '--out found.txt does not end with .pkl' in capsys.readouterr().err
