"""The controls keep what a frozen teacher promises, and hide nothing of it."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from lfi_mmdet.datasets.target_store.selection import TextChoice, read_records
from lfi_mmdet.datasets.target_store.teacher_config import plain_teacher
from lfi_mmdet.datasets.transforms.stored_presence import StoredPresence
from lfi_mmdet.engine.caching_source import Source
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation.teacher_trial import AS_CONFIGURED, TeacherTrial, trial_config
from tests.stored_targets import make_meta
from tests.tiny import tiny_config_text, write_tiny_coco

from .brightness import CLASSES, BrightnessTeacher, ask, image_of

CONTROLS = ('RandomTeacher', 'ShuffledTeacher', 'UniformTeacher')
IMAGES = [image_of(30.0, [0]), image_of(120.0, [0, 2])]


@pytest.fixture(params=CONTROLS)
def control(request):
    def build(**inner):
        inner = dict(type='BrightnessTeacher', **inner)
        return MODELS.build(dict(type=request.param, teacher=inner))

    return build


class Student(nn.Module):
    """Holds a teacher as a detector does."""

    def __init__(self, teacher) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.teacher = teacher

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        self.teacher.apply_(fn)
        return self


def test_the_teacher_inside_is_in_no_state_dict_and_shared_by_copies(control):
    student = Student(control()).train().requires_grad_(True)
    assert set(student.state_dict()) == {'layer.weight', 'layer.bias'}
    assert list(student.modules()) == [student, student.layer]
    assert copy.deepcopy(student).teacher is student.teacher
    network = student.teacher.network
    assert not any(module.training for module in network.modules())
    assert not any(value.requires_grad for value in network.parameters())


def test_the_teacher_inside_follows_the_student_and_is_verified(control):
    teacher = control()
    before = teacher.weights_hash()
    student = Student(teacher).half()
    weights = list(teacher.network.parameters())
    assert {w.dtype for w in weights} == {torch.float16}
    assert teacher.texts['index'].dtype == torch.float16
    teacher.verify()  # rounding is no tampering
    assert ask(teacher, *IMAGES).maps.dtype == torch.float32
    student.to('meta')
    assert teacher.texts['index'].device.type == 'meta'
    other = control()
    assert other.weights_hash() == before
    next(other.network.parameters()).data += 1
    with pytest.raises(RuntimeError, match='BrightnessTeacher changed'):
        other.verify()


def test_the_teacher_inside_takes_over_a_network_and_notes_its_weights(control):
    teacher = control()
    before, network = teacher.weights_hash(), copy.deepcopy(teacher.network)
    next(network.parameters()).data += 1
    teacher.freeze(network)
    assert teacher.inner.network is network and teacher.weights_hash() != before
    teacher.verify()


def test_it_tells_about_itself_what_the_teacher_inside_does(control):
    teacher, plain = control(class_names=None), BrightnessTeacher(class_names=None)
    with pytest.raises(RuntimeError, match='has no texts yet'):
        ask(teacher, *IMAGES)
    for one in (teacher, plain):
        one.set_class_names(CLASSES)
    teacher.inner.more_texts = plain.more_texts = ('sky',)
    names = [
        'num_layers',
        'layer_names',
        'num_texts',
        'feature_dims',
        'has_relations',
        'has_mass',
    ]
    names += ['more_texts', 'reading', 'class_names', 'present', 'wants_scores']
    for name in names:
        assert getattr(teacher, name) == getattr(plain, name), name
    assert teacher.view.size == plain.view.size
    assert not hasattr(teacher, 'teachers') and not hasattr(teacher, 'no_such_thing')
    teacher.check_dataset('dataset')
    assert teacher.inner.checked == ['dataset']


def test_what_is_set_on_it_reaches_the_teacher_inside(control):
    teacher = control()
    assert ask(teacher, *IMAGES).scores is None
    teacher.wants_scores, teacher.present = True, 'all'
    targets = ask(teacher, *IMAGES)
    assert targets.scores.shape == (2, 3) and targets.present.all()
    teacher.wants_tokens = True
    assert teacher.inner.wants_tokens is True


def test_targets_are_ordinary_tensors_that_losses_can_use(control):
    targets = ask(control(), *IMAGES, compact=True)
    for name in ('maps', 'features', 'log_mass'):
        assert not getattr(targets, name).is_inference()


def test_the_type_of_rounded_weights_is_that_of_the_teacher_inside(control):
    teacher = control(precision='bfloat16')
    with torch.autocast('cpu', dtype=torch.float16):
        cast = ask(teacher, *IMAGES)
    assert torch.equal(cast.maps, ask(teacher, *IMAGES).maps)


def test_it_can_be_tried_on_all_classes():
    cfg = Config(dict(model=dict(data_preprocessor=dict(type='DetDataPreprocessor'))))
    inner = dict(type='BrightnessTeacher', class_names=CLASSES)
    teacher = dict(type='RandomTeacher', teacher=inner)
    trial = TeacherTrial(cfg, trial_config(teacher, AS_CONFIGURED), CLASSES)
    assert teacher['teacher'] is inner and 'present' not in inner
    batch = dict(inputs=[pixels for pixels, _ in IMAGES],
                 data_samples=[sample for _, sample in IMAGES])  # fmt: skip
    (answer,) = trial.run([batch])
    assert answer.targets.present.all() and answer.targets.scores is not None


@pytest.mark.parametrize('control', ['RandomTeacher', 'UniformTeacher'], indirect=True)
def test_its_targets_can_be_stored(control):
    teacher = control(present='teacher')
    images = torch.stack([pixels for pixels, _ in IMAGES])
    batch = dict(inputs=images, data_samples=[sample for _, sample in IMAGES])
    records = read_records(teacher, batch, None, TextChoice('all'))
    found = ask(teacher, *IMAGES)
    assert [r.present.tolist() for r in records] == found.present.tolist()
    inner = dict(type='BrightnessTeacher', present='teacher')
    config = dict(type=type(teacher).__name__, teacher=inner)
    meta = make_meta(teacher=plain_teacher(config))
    assert StoredPresence(meta).rule == 'teacher'


def tiny_config(tmp_path, teacher, **kwargs):
    write_tiny_coco(tmp_path)
    inner = "dict(type='GroundTruthTeacher', grid_size=8, blur=(1.0, 0.5))"
    extra = f"model['teacher'] = dict(type={teacher!r}, teacher={inner})\n"
    path = tmp_path / 'tiny.py'
    path.write_text(tiny_config_text(tmp_path, extra=extra, **kwargs))
    return Config.fromfile(path)


def test_what_depends_on_the_batch_cannot_be_stored(tmp_path):
    cfg = tiny_config(tmp_path, 'ShuffledTeacher')
    with pytest.raises(InputError, match='what ShuffledTeacher says .* be cached'):
        Source.build(cfg, 'train', torch.device('cpu'))


@pytest.mark.slow
@pytest.mark.parametrize('teacher', ['ShuffledTeacher', 'UniformTeacher'])
@pytest.mark.parametrize('batch_size', [1, 2])
def test_a_detector_trains_with_it(tmp_path, teacher, batch_size):
    cfg = tiny_config(tmp_path, teacher, batch_size=batch_size)
    cfg.work_dir = str(tmp_path / 'run')
    runner = Runner.from_cfg(cfg)
    runner.train()
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)
    assert not any('teacher' in name for name in saved['state_dict'])
    losses = runner.message_hub.log_scalars['train/loss_lfi_attention'].data[0]
    assert torch.isfinite(torch.tensor(losses)).all() and losses[-1] > 0
