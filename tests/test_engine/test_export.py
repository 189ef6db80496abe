"""The student alone: the same predictions from less."""

import os
import re
from collections import OrderedDict

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from lfi_mmdet.engine import export as module
from lfi_mmdet.engine.export import choose_weights, export_student, write_both
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.engine.student_config import config_of_checkpoint, plain_type
from lfi_mmdet.models.detectors import LFIMaskRCNN, LFIMixin
from tests.test_tools.conftest import in_place
from tests.tiny import CLASSES, tiny_config_text

NO_FEEDBACK = "model['backbone'].update(feedback=False)\n"
EMA = "custom_hooks = [dict(type='EMAHook'), dict(type='CheckInvalidLossHook')]\n"


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    """mmengine would spend seconds on the beauty of a config."""
    in_place(monkeypatch, tmp_path)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
    """That of a detector with feedback."""
    root = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_place(monkeypatch, root)
        cfg = config(root)
        return save(trained(cfg), cfg, root / 'a.pth')


def config(tmp_path, extra='') -> Config:
    path = tmp_path / 'training.py'
    path.write_text(tiny_config_text(tmp_path, extra=extra))
    return Config.fromfile(path)


def trained(cfg: Config) -> torch.nn.Module:
    """A detector whose every weight and statistic differs from its start value."""
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor), alpha=0.1)
    return model.eval()


def save(model, cfg, path, **changes) -> str:
    """A checkpoint with the entries that mmengine's runner writes."""
    loss = HistoryBuffer()
    loss.update(1.0)
    content = dict(
        meta=dict(cfg=cfg.pretty_text, epoch=3, iter=30, seed=0,
                  dataset_meta=dict(classes=CLASSES, palette=[(1, 2, 3)] * 3)),
        state_dict=model.state_dict(),
        message_hub=dict(log_scalars=dict(loss=loss)),
        optimizer=dict(state={0: torch.zeros(1000)}),
        param_schedulers=[],
    )  # fmt: skip
    content.update(changes)
    torch.save(content, path)
    return str(path)


def predict(model, images, sizes) -> list:
    samples = [
        DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1, 1))
        )
        for size in sizes
    ]
    with torch.no_grad():
        return [s.pred_instances for s in model.predict(images, samples)]


def load(export) -> torch.nn.Module:
    """Build what the exported config says and load the exported weights, strictly."""
    cfg = Config.fromfile(export.config)
    model = MODELS.build(cfg.model)
    # no class but tensors, strings and numbers is in the file
    content = torch.load(export.weights, weights_only=True)
    model.load_state_dict(content['state_dict'], strict=True)
    return model.eval()


@pytest.mark.parametrize('feedback', [False, True])
def test_the_exported_student_predicts_the_same_to_the_bit(tmp_path, feedback):
    cfg = config(tmp_path, '' if feedback else NO_FEEDBACK)
    model = trained(cfg)
    export = export_student(save(model, cfg, tmp_path / 'a.pth'), tmp_path / 'b.pth')
    student = load(export)
    # the second image is padded
    images, sizes = torch.randn(2, 3, 64, 80), [(64, 80), (48, 56)]
    with torch.no_grad():
        features = zip(model.backbone(images), student.backbone(images), strict=True)
        assert all(torch.equal(a, b) for a, b in features)
    for a, b in zip(predict(model, images, sizes), predict(student, images, sizes)):
        assert len(a) > 0 and a.keys() == b.keys()
        for name in ('bboxes', 'scores', 'labels', 'masks'):
            assert torch.equal(a[name], b[name]), name


def test_without_feedback_it_is_the_plain_twin(tmp_path):
    cfg = config(tmp_path, NO_FEEDBACK)
    model = trained(cfg)
    export = export_student(save(model, cfg, tmp_path / 'a.pth'), tmp_path / 'b.pth')
    student = load(export)
    assert type(student).__name__ == export.model == 'MaskRCNN'
    assert student.backbone.num_queries == 0 and not export.queries
    twin = config(tmp_path, NO_FEEDBACK)
    twin.model.update(type='MaskRCNN')
    twin.model.backbone.update(num_queries=0)
    for key in ('teacher', 'distiller'):
        twin.model.pop(key)
    result = MODELS.build(twin.model).load_state_dict(student.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    backbone = model.backbone
    parts = [backbone.queries, *backbone.interaction.parameters()]
    assert export.dropped == dict(interaction=sum(p.numel() for p in parts))
    assert 'interaction' not in export.config.read_text()


def test_with_feedback_the_queries_stay_and_the_distiller_goes(tmp_path):
    extra = (
        "model['teacher'].update(type='GroundTruthTeacher')\n"
        "model['distiller'].update(losses=dict("
        "attention=dict(type='InteractionAttentionLoss')))\n"
    )
    cfg = config(tmp_path, extra)
    state = trained(cfg).state_dict()
    state['distiller.losses.feature.proj.weight'] = torch.ones(4, 5)
    path = save(torch.nn.Identity(), cfg, tmp_path / 'a.pth', state_dict=state)
    export = export_student(path, tmp_path / 'b.pth')
    student = load(export)
    assert type(student).__name__ == export.model == 'LFIMaskRCNN' and export.queries
    assert student.teacher is None and student.distiller is None
    assert torch.equal(student.backbone.queries, state['backbone.queries'])
    assert export.dropped == dict(distiller=20)


def test_training_is_left_out_of_weights_and_config(tmp_path):
    cfg = config(tmp_path, EMA)
    path = save(trained(cfg), cfg, tmp_path / 'a.pth')
    export = export_student(path, tmp_path / 'new' / 'b.pth')
    content = torch.load(export.weights, weights_only=True)
    assert content.keys() == {'meta', 'state_dict'}
    assert content['meta']['dataset_meta']['classes'] == CLASSES
    assert content['meta']['epoch'] == 3 and export.has_classes
    assert export.size < export.source_size
    written = Config.fromfile(export.config)
    assert not [key for key in written.keys() if key.startswith('train_')]
    assert 'optim_wrapper' not in written and 'load_from' not in written
    assert written.test_dataloader == cfg.test_dataloader
    assert written.custom_imports == cfg.custom_imports
    assert [hook.type for hook in written.custom_hooks] == ['CheckInvalidLossHook']
    # mmdet's DetInferencer reads the config in the file
    in_file = Config.fromstring(content['meta']['cfg'], '.py')
    assert in_file.model == written.model
    assert sorted(os.listdir(tmp_path / 'new')) == ['b.pth', 'b.py']


def averaged(model, cfg, path):
    """A checkpoint of EMAHook: averages in front, the last weights behind."""
    last = OrderedDict((f'module.{k}', v + 1) for k, v in model.state_dict().items())
    last['steps'] = torch.tensor(7)
    return save(model, cfg, path, ema_state_dict=last)


@pytest.mark.parametrize('ema, shift', [(None, 0), (True, 0), (False, 1)])
def test_averaged_weights_are_those_in_front(tmp_path, ema, shift):
    cfg = config(tmp_path, NO_FEEDBACK)
    model = trained(cfg)
    export = export_student(
        averaged(model, cfg, tmp_path / 'a.pth'), tmp_path / 'b.pth', ema=ema
    )
    name = 'roi_head.bbox_head.fc_cls.weight'
    expected = model.state_dict()[name] + shift
    assert torch.equal(load(export).state_dict()[name], expected)
    assert export.averaged == (not shift)


def test_names_of_a_wrapped_model_are_taken_as_they_are_meant():
    wrapped = OrderedDict({'module.backbone.queries': torch.ones(2)})
    state, is_averaged = choose_weights(dict(state_dict=wrapped), 'a.pth', None)
    assert list(state) == ['backbone.queries'] and not is_averaged


def refusal(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        export_student(*map(str, args), **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path):
    cfg = config(tmp_path)
    model = trained(cfg)
    good, out = save(model, cfg, tmp_path / 'good.pth'), tmp_path / 'out.pth'
    assert 'no.pth: no such file; checkpoints in' in refusal(tmp_path / 'no.pth', out)
    (tmp_path / 'text.pth').write_text('weights')
    assert 'cannot be read' in refusal(tmp_path / 'text.pth', out)
    torch.save([1], tmp_path / 'list.pth')
    assert 'holds a list, not a dict' in refusal(tmp_path / 'list.pth', out)
    torch.save(dict(state_dict=dict(a=1)), tmp_path / 'empty.pth')
    assert 'holds no weights' in refusal(tmp_path / 'empty.pth', out)
    queries = ('backbone.queries', 'backbone.interaction')
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(queries)}
    plain = save(model, cfg, tmp_path / 'plain.pth', state_dict=state)
    assert 'has no interaction weights' in refusal(plain, out)
    bare = save(model, cfg, tmp_path / 'bare.pth', meta={})
    assert 'holds no config; name it with --config' in refusal(bare, out)
    assert 'no averaged weights (ema_state_dict)' in refusal(good, out, ema=True)
    assert 'no model.backbone' in refusal(good, out, cfg=Config(dict(a=1)))
    assert 'does not end with one of' in refusal(good, tmp_path / 'out.py')
    assert 'is the checkpoint itself' in refusal(good, good, force=True)
    assert not out.exists() and not out.with_suffix('.py').exists()


@pytest.mark.parametrize(
    'extra, message',
    [
        (NO_FEEDBACK, r'another model: backbone\.interaction\.\S+ is not in the model'),
        ("model['backbone'].update(num_queries=2)\n", r'queries has shape \(3, 32\)'),
        ("model['backbone'].update(num_queries=0)\n", 'this is a plain detector'),
        ("model['backbone'] = dict(type='ResNet', depth=18)\n", "type='ResNet' has no"),
        ("model['neck'].update(out_channels=8)\n", 'model of another size: neck'),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, checkpoint, extra, message):
    found = refusal(checkpoint, tmp_path / 'b.pth', cfg=config(tmp_path, extra))
    assert re.search(message, found), found
    assert not (tmp_path / 'b.pth').exists()


def test_weights_without_a_place_are_not_dropped_silently(tmp_path):
    cfg = config(tmp_path)
    state = trained(cfg).state_dict()
    state['mask_iou_head.weight'] = torch.ones(2)
    path = save(torch.nn.Identity(), cfg, tmp_path / 'a.pth', state_dict=state)
    message = refusal(path, tmp_path / 'b.pth')
    assert 'mask_iou_head.weight has no place in the student' in message


@pytest.mark.parametrize('name', ['b.pth', 'b.py'])
def test_files_that_exist_are_replaced_only_by_force(tmp_path, checkpoint, name):
    (tmp_path / name).write_text('precious')
    assert f'{name} exists' in refusal(checkpoint, tmp_path / 'b.pth')
    assert (tmp_path / name).read_text() == 'precious'
    load(export_student(checkpoint, tmp_path / 'b.pth', force=True))


@pytest.mark.parametrize('step', [0, 1])
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch, step):
    replaced = []

    def replace(source, target):
        if len(replaced) == step:
            raise OSError(28, 'No space left on device')
        replaced.append(target)
        os.rename(source, target)

    monkeypatch.setattr(module.os, 'replace', replace)
    with pytest.raises(InputError, match='b.pth cannot be written: .*No space left'):
        write_both(
            tmp_path / 'b.pth', dict(a=torch.ones(2)), tmp_path / 'b.py', 'x = 1'
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    'text',
    [
        "import os\nmodel = dict(type='A')",
        "model = dict(type=__import__('os').getcwd())",
        'model = [x for x in (1, 2)]',
        "model = open('a')",
        'model = dict(**{})',
        "model = dict(open('a'))",
        "model = {'a': open('a')}",
        "_base_ = 'other.py'",
        "a.b = 'c'",
        'def f(): pass',
        'model = (',
    ],
)
def test_a_config_in_a_checkpoint_that_does_something_is_not_run(text):
    with pytest.raises(InputError, match='is not made of plain settings'):
        config_of_checkpoint(text, 'a.pth')


def test_a_config_of_plain_settings_is_read():
    text = "a = dict(b=[1, -2.5, (None, True)], c={'d-e': 'f'})\ng = 'h'\n"
    cfg = config_of_checkpoint(text, 'a.pth')
    assert cfg.a.b == [1, -2.5, (None, True)] and cfg.a.c['d-e'] == 'f' and cfg.g == 'h'


def test_a_detector_with_something_of_its_own_keeps_its_class():
    class Own(LFIMaskRCNN):
        pass

    class Richer(LFIMixin, LFIMaskRCNN.__bases__[1]):
        def predict(self, *args, **kwargs):
            return []

    assert plain_type(LFIMaskRCNN) == 'MaskRCNN'
    assert plain_type(Own) is None and plain_type(Richer) is None
