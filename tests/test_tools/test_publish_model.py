"""tools/publish_model.py."""

import hashlib
import json

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config

from tests.test_tools.conftest import call_tool, in_place
from tests.tiny import write_tiny_run

AVERAGED = "custom_hooks = [dict(type='EMAHook', momentum=0.5)]"


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A finished training with averaged weights."""
    root = tmp_path_factory.mktemp('trained')
    config = write_tiny_run(root, extra=AVERAGED)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_place(monkeypatch, root)
        call_tool('train', config)
    return root / 'work_dirs' / 'tiny' / 'iter_2.pth'


def test_weights_are_named_by_their_digest_and_hold_nothing_of_the_training(
    tool, trained, tmp_path, capsys
):
    (log,) = trained.parent.glob('*/vis_data/scalars.json')
    told = tool(
        'publish_model', trained, tmp_path / 'zoo', 'tiny', '--log', log,
        '--command', 'train tiny.py',
    )  # fmt: skip
    digest = hashlib.sha256(told.weights.read_bytes()).hexdigest()
    assert told.sha256 == digest and told.weights.name == f'tiny-{digest[:8]}.pth'
    assert digest in capsys.readouterr().out
    names = {path.name for path in (tmp_path / 'zoo').iterdir()}
    assert names == {told.weights.name, 'tiny.py', 'tiny.json', 'tiny.log.json'}
    content = torch.load(told.weights, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    before = torch.load(trained, weights_only=False)
    assert {'optimizer', 'ema_state_dict', 'message_hub'} <= set(before)
    assert told.size < 0.5 * trained.stat().st_size
    for name, value in content['state_dict'].items():
        torch.testing.assert_close(value, before['state_dict'][name], msg=name)
    # the config is that of the training, and its model takes the weights
    cfg = Config.fromfile(told.config)
    assert 'work_dir' not in cfg
    model = MODELS.build(cfg.model)
    result = model.load_state_dict(content['state_dict'], strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith('distiller.') for key in result.missing_keys)
    record = json.loads(told.record.read_text())
    assert record['sha256'] == digest and record['bytes'] == told.size
    assert record['command'] == 'train tiny.py' and record['iter'] == 2
    assert record['averaged'] and record['versions']['torch'] == torch.__version__
    assert (tmp_path / 'zoo' / 'tiny.log.json').read_text() == log.read_text()


def test_published_weights_predict_without_a_teacher(tool, trained, tmp_path):
    told = tool('publish_model', trained, tmp_path / 'zoo', 'tiny')
    assert Config.fromfile(told.config).model.teacher is not None
    inferencer = DetInferencer(weights=str(told.weights), device='cpu', palette='coco')
    assert inferencer.model.teacher is inferencer.model.distiller is None
    found = inferencer(np.zeros((64, 64, 3), np.uint8), no_save_vis=True)
    assert set(found['predictions'][0]) >= {'labels', 'scores', 'bboxes', 'masks'}
    before = torch.load(trained, weights_only=False)['state_dict']
    after = inferencer.model.state_dict()
    assert after and all(torch.equal(after[name], before[name]) for name in after)


def test_what_is_published_again_keeps_the_config_of_its_training(
    tool, trained, tmp_path
):
    first = tool('publish_model', trained, tmp_path / 'a', 'tiny')
    again = tool('publish_model', first.weights, tmp_path / 'b', 'tiny', '--fp16')
    assert again.config.read_text() == first.config.read_text()
    assert Config.fromfile(again.config).model.teacher is not None
    third = tool('publish_model', again.weights, tmp_path / 'c', 'tiny')
    assert json.loads(third.record.read_text())['precision'] == 'float16'


def test_the_config_to_predict_names_no_file(tool, trained, tmp_path):
    content = torch.load(trained, weights_only=False)
    cfg = Config.fromstring(content['meta']['cfg'], '.py')
    there = dict(type='Pretrained', checkpoint='/mine/weights.pth')
    cfg.model.backbone.init_cfg = cfg.model.neck.init_cfg = there
    cfg.model.backbone.text_embeddings = '/mine/texts.pt'
    content['meta']['cfg'] = cfg.pretty_text
    torch.save(content, 'b.pth')
    told = tool('publish_model', 'b.pth', tmp_path / 'zoo', 'tiny')
    meta = torch.load(told.weights, weights_only=True)['meta']
    assert '/mine/' in meta['training_cfg'] and '/mine/' not in meta['cfg']


def test_last_weights_are_taken_if_asked_for(tool, trained, tmp_path):
    told = tool('publish_model', trained, tmp_path, 'last', '--no-ema')
    key = 'backbone.queries'
    before = torch.load(trained, weights_only=False)['ema_state_dict']
    found = torch.load(told.weights, weights_only=True)['state_dict']
    torch.testing.assert_close(found[key], before[f'module.{key}'])


def test_half_precision_takes_half_the_space_and_loads_as_it_is(
    tool, trained, tmp_path
):
    told = tool('publish_model', trained, tmp_path / 'half', 'a', '--fp16')
    whole = tool('publish_model', trained, tmp_path / 'whole', 'a')
    assert told.size < 0.6 * whole.size
    assert json.loads(told.record.read_text())['precision'] == 'float16'
    found = torch.load(told.weights, weights_only=True)['state_dict']
    model = MODELS.build(Config.fromfile(told.config).model)
    model.load_state_dict(found, strict=False)
    before = torch.load(trained, weights_only=False)['state_dict']
    after = model.state_dict()
    for name in found:
        torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=1e-3)


def test_the_record_tells_what_an_evaluation_found(tool, trained, tmp_path):
    (tmp_path / 'm.json').write_text(json.dumps({'coco/bbox_mAP': 0.5, 'time': 3}))
    told = tool('publish_model', trained, 'zoo', 'a', '--metrics', 'm.json')
    assert json.loads(told.record.read_text())['metrics'] == {'coco/bbox_mAP': 0.5}
    for content, message in (('{"time": 3}', 'no entry such as'), ('x', 'be read')):
        (tmp_path / 'm.json').write_text(content)
        refused = pytest.raises(
            SystemExit, tool, 'publish_model', trained, 'b', 'a', '--metrics', 'm.json'
        )
        assert 'metrics m.json' in str(refused.value.code)
        assert message in str(refused.value.code)
    assert not (tmp_path / 'b').exists()


def test_numbers_too_large_for_half_precision_are_refused(tool, trained, tmp_path):
    content = torch.load(trained, weights_only=False)
    content['state_dict']['backbone.queries'].fill_(1e6)
    torch.save(content, 'large.pth')
    refused = pytest.raises(
        SystemExit, tool, 'publish_model', 'large.pth', tmp_path / 'zoo', 'a', '--fp16'
    )
    assert 'backbone.queries has numbers' in str(refused.value.code)
    assert not (tmp_path / 'zoo').exists()


def test_nothing_is_replaced_unasked_and_no_older_weights_stay(tool, trained, tmp_path):
    first = tool('publish_model', trained, tmp_path, 'tiny')
    with pytest.raises(SystemExit, match=f'{first.weights.name} exist; choose another'):
        tool('publish_model', trained, tmp_path, 'tiny', '--no-ema')
    assert first.weights.exists()
    second = tool('publish_model', trained, tmp_path, 'tiny', '--no-ema', '--force')
    assert second.weights != first.weights
    assert list(tmp_path.glob('*.pth')) == [second.weights]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nobody.pth', 'zoo', 'tiny'], 'checkpoint=nobody.pth: no such file'),
        (['{trained}', 'zoo', 'a/b'], "name 'a/b' is to be that of files"),
        (['{trained}', 'zoo', 'tiny', '--log', 'no.json'], 'log no.json: no such file'),
        (['{trained}', 'file', 'tiny'], 'file cannot be written to'),
    ],
)
def test_bad_input_leaves_nothing_behind(tool, trained, tmp_path, arguments, message):
    (tmp_path / 'file').write_text('')
    given = [text.format(trained=trained) for text in arguments]
    with pytest.raises(SystemExit, match=message):
        tool('publish_model', *given)
    assert not list(tmp_path.glob('**/*.pth')) and not list(tmp_path.glob('**/.tiny*'))
