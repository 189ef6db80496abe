"""What a frozen teacher promises, kept by those made of open_clip models."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from lfi_mmdet.models.teachers import CLIPTeacher

from .tiny_open_clip import CLASSES, some_images

PRESENT = torch.tensor([[True, True, False], [False, True, True]])


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


@pytest.fixture(params=['CoCaTeacher', 'CLIPTeacher'])
def student(request, saved):
    model = {'CoCaTeacher': 'tiny-coca', 'CLIPTeacher': 'tiny-clip'}[request.param]
    _, file = saved(model)
    config = dict(
        type=request.param, model=model, pretrained=file, class_names=list(CLASSES)
    )
    return Student(MODELS.build(config))


def tensors_of(teacher):
    yield from teacher.network.state_dict().values()
    yield from teacher.texts.values()


def test_the_teacher_is_in_no_state_dict_and_among_no_parameters(student):
    assert set(student.state_dict()) == {'layer.weight', 'layer.bias'}
    assert len(list(student.parameters())) == 2
    assert list(student.modules()) == [student, student.layer]


def test_the_teacher_stays_frozen_and_in_eval_mode_when_the_student_trains(student):
    student.train().requires_grad_(True)
    network = student.teacher.network
    assert not any(module.training for module in network.modules())
    tensors = [*network.parameters(), *student.teacher.texts.values()]
    assert not any(value.requires_grad for value in tensors)


def test_copies_share_the_teacher(student):
    assert copy.deepcopy(student).teacher is student.teacher


def test_weights_and_texts_follow_the_student_to_half_precision(student):
    images = some_images()
    plain = student.teacher.interact(images, PRESENT)
    student.half()
    floats = [v.dtype for v in tensors_of(student.teacher) if v.is_floating_point()]
    assert floats and set(floats) == {torch.float16}
    half = student.teacher.interact(images, PRESENT)
    assert half.maps.dtype == torch.float32
    torch.testing.assert_close(half.maps, plain.maps, atol=5e-3, rtol=0.05)
    student.teacher.verify()  # rounding is no tampering


def test_weights_and_texts_follow_the_student_to_another_device(student):
    student.to('meta')
    assert {value.device.type for value in tensors_of(student.teacher)} == {'meta'}


def test_a_changed_weight_is_noticed(student):
    teacher = student.teacher
    teacher.verify()
    with torch.no_grad():
        next(teacher.network.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(RuntimeError, match=f'{type(teacher).__name__} changed'):
        teacher.verify()
    with pytest.raises(RuntimeError, match='changed'):
        student.half()  # a cast does not hide it


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_weights_are_rounded_when_they_are_loaded(saved, precision):
    options = dict(pretrained=saved('tiny-clip')[1], class_names=CLASSES)
    teacher = CLIPTeacher('tiny-clip', precision=precision, **options)
    dtype = getattr(torch, precision)
    assert {value.dtype for value in teacher.network.parameters()} == {dtype}
    teacher.verify()  # the hash is of the rounded ones
    plain = CLIPTeacher('tiny-clip', **options)
    assert plain.weights_hash() != teacher.weights_hash()


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_rounded_weights_run_in_their_own_type_whatever_autocast_says(
    student, precision
):
    student.to(getattr(torch, precision))
    sample = DetDataSample(metainfo=dict(img_shape=(32, 32)))
    sample.gt_instances = InstanceData(labels=torch.tensor([0, 2]))
    batch = (255 * torch.rand(1, 3, 32, 32), [sample], None)
    plain = student.teacher(*batch)
    for other in (torch.bfloat16, torch.float16):
        with torch.autocast('cpu', dtype=other):
            cast = student.teacher(*batch)
        assert torch.equal(cast.maps, plain.maps)
        assert torch.equal(cast.features, plain.features)


def test_a_batch_of_the_student_becomes_targets(student):
    preprocessor = MODELS.build(
        dict(
            type='DetDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        )
    )
    samples = []
    for labels, shape in [([0, 1], (40, 64)), ([], (48, 56))]:
        sample = DetDataSample(metainfo=dict(img_shape=shape))
        sample.gt_instances = InstanceData(labels=torch.tensor(labels).long())
        samples.append(sample)
    inputs = torch.randn(2, 3, 48, 64)
    targets = student.teacher(inputs, samples, preprocessor, compact=False)
    assert targets.present.tolist() == [[True, True, False], [False] * 3]
    sums = targets.maps.sum((-2, -1))
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert targets.features.shape[-1] == student.teacher.feature_dims
    assert not targets.maps.is_inference()  # or no loss could use it
    few = student.teacher(inputs, samples, preprocessor)
    assert few.texts.tolist()[0] == [0, 1] and few.maps.shape[2] == 2
    assert few.present.tolist() == [[True, True], [False, False]]
    torch.testing.assert_close(few.maps[0], targets.maps[0, :, :2])
    torch.testing.assert_close(few.features[0], targets.features[0, :, :2])


def test_texts_are_needed_before_the_first_batch(configs):
    teacher = MODELS.build(dict(type='CLIPTeacher', model='tiny-clip'))
    with pytest.raises(RuntimeError, match='has no texts yet'):
        teacher(torch.zeros(1, 3, 8, 8), [], None)
    teacher.set_class_names(CLASSES)
    assert teacher.texts['embeds'].shape == (3, 24)
