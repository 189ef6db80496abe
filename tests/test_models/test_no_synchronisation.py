"""What runs on the device in every step never makes the host wait for it.

On a GPU these operations hand a number, or a shape that depends on numbers, to the
host, or send numbers there and wait until all work before has been done. They can be
seen on the CPU as well, so that nobody has to own a GPU to keep them out.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lfi_mmdet.models.distillers import FeatureDistiller, InteractionDistiller
from lfi_mmdet.models.teachers import CLIPTeacher, CoCaTeacher, EnsembleTeacher
from lfi_mmdet.structures import InteractionSpec, InteractionTargets, InteractionTrace
from tests.test_models.test_teachers.tiny_open_clip import (
    CLASSES,
    some_images,
    write_configs,
)

#: Operations whose result, or its shape, the host has to read
WAITS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'unique', 'is_nonzero')


class Sends(TorchFunctionMode):
    """Refuses numbers of the host that torch sends to a GPU, and waits until it has."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            lists = [i for i in index if isinstance(i, list)]
            assert not lists, f'the index {lists} makes the host wait'
        assert func is not torch.Tensor.new_tensor, 'new_tensor makes the host wait'
        return func(*args, **(kwargs or {}))


class Values(TorchDispatchMode):
    """Refuses values of a GPU that the host has to read."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition('::')[2].partition('.')[0]
        if any(wait in name for wait in WAITS):
            raise AssertionError(f'{func.name()} makes the host wait')
        if name in ('index', 'index_put', 'index_put_'):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, f'{func.name()} with a mask makes the host wait'
        return func(*args, **(kwargs or {}))


@contextmanager
def watch():
    with Sends(), Values():
        yield


def test_the_watch_sees_what_waits():
    values = torch.rand(3)
    for wait in (
        values.sum().item,
        values.nonzero,
        lambda: values[values > 0.5],
        lambda: values[[0, 2]],
        lambda: values[None][:, [0, 2]],
        lambda: values.new_tensor([1.0]),
    ):
        with pytest.raises(AssertionError, match='makes the host wait'), watch():
            wait()


@pytest.mark.parametrize('assignment', [None, 'SinkhornAssignment'])
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('layers', [2, 5])
def test_the_losses_do_not_wait(assignment, padded, layers):
    spec = InteractionSpec(layers=(1, 3), num_queries=5, embed_dims=8, feedback=True)
    distiller = InteractionDistiller(
        spec,
        teacher_layers=layers,
        feature_dims=6,
        losses=dict(
            attention=dict(type='InteractionAttentionLoss'),
            relation=dict(type='InteractionRelationLoss'),
            dynamics=dict(type='InteractionDynamicsLoss'),
            feature=dict(type='InteractionFeatureLoss'),
        ),
        assignment=assignment and dict(type=assignment, num_tied=2),
    )
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[1, 12:] = False
    trace = InteractionTrace(
        logits=[torch.randn(2, 2, 5, 16, requires_grad=True) for _ in range(2)],
        queries=[torch.randn(2, 5, 8, requires_grad=True) for _ in range(2)],
        grid=(4, 4),
        valid=valid if padded else None,
    )
    present = torch.tensor([[True, False, True, True, False]] * 2)
    targets = InteractionTargets(
        maps=torch.rand(2, layers, 5, 36).softmax(-1).unflatten(-1, (6, 6)),
        present=present,
        features=torch.randn(2, layers, 5, 6),
    ).select(present)
    with watch():
        losses = distiller(trace, targets, [(32, 32), (24, 32)], (8, 8))
        sum(losses.values()).backward()
    assert all(t.grad.abs().sum() > 0 for t in trace.logits)


def test_the_competitors_do_not_wait():
    """But for that on regions, as an RPN's proposals are selected by their values."""
    distiller = FeatureDistiller(
        InteractionSpec(layers=(), num_queries=0, embed_dims=8, feedback=False),
        token_dims=dict(tower=6),
        losses=dict(
            acam=dict(type='ACAMLoss'),
            at=dict(type='AttentionTransferLoss'),
            cwd=dict(type='CWDLoss'),
            fitnet=dict(type='FitNetLoss'),
            mgd=dict(type='MGDLoss'),
            rkd=dict(type='RKDLoss'),
            trg=dict(type='TRGLoss'),
        ),
    )
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[1, 12:] = False
    student = torch.randn(2, 8, 4, 4, requires_grad=True)
    trace = InteractionTrace(grid=(4, 4), valid=valid, outputs=(student,))
    targets = InteractionTargets(
        maps=torch.rand(2, 1, 3, 6, 6),
        present=torch.ones(2, 3, dtype=torch.bool),
        tokens=torch.randn(2, 1, 6, 6, 6),
    )
    with watch():
        losses = distiller(trace, targets, [(32, 32), (24, 32)], (8, 8))
        sum(losses.values()).backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(
    'make',
    [
        lambda: CLIPTeacher('tiny-clip', layers='all', class_names=CLASSES),
        lambda: CLIPTeacher('tiny-eva', mode='qq', class_names=CLASSES),
        lambda: CoCaTeacher('tiny-coca', class_names=CLASSES),
        lambda: CoCaTeacher('tiny-coca', heads=[0, 2], class_names=CLASSES),
    ],
    ids=['clip', 'eva', 'coca', 'heads'],
)
def test_a_teacher_does_not_wait_once_the_present_texts_are_known(make, tmp_path):
    import open_clip

    open_clip.add_model_config(write_configs(tmp_path))
    teacher = make()
    pairs = (torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]))
    images = some_images()
    with torch.no_grad(), watch():
        reading = teacher.read(teacher.encode_images(images), teacher.texts, pairs)
    assert reading.maps.shape[0] == 3


def test_several_teachers_are_put_together_without_waiting(tmp_path):
    import open_clip

    open_clip.add_model_config(write_configs(tmp_path))
    members = [
        dict(type='CLIPTeacher', model='tiny-clip', layers=layers)
        for layers in ([2], [0, 1, 2])
    ]
    teacher = EnsembleTeacher(members, weights=[1, 2], class_names=CLASSES)
    present = torch.tensor([[True, False, True]])
    with torch.no_grad():
        answers = [m.interact(some_images(1), present) for m in teacher.teachers]
        with watch():
            found = teacher.combine(answers)
    assert found.maps.shape[:3] == (1, 3, 3)
