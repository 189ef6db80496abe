"""The teacher's input, made from the student's batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lfi_mmdet.models.teachers import view as view_module
from lfi_mmdet.models.teachers.view import TeacherView

SHAPES = [(40, 56), (33, 64), (40, 56)]


def samples(shapes):
    return [DetDataSample(metainfo=dict(img_shape=shape)) for shape in shapes]


def student(bgr_to_rgb=True, normalise=True):
    stats = dict(mean=[120.0, 110, 100], std=[50.0, 60, 70]) if normalise else {}
    return DetDataPreprocessor(**stats, bgr_to_rgb=bgr_to_rgb)


@pytest.fixture
def inputs():
    """What a student's preprocessor could have made."""
    return torch.randn(3, 3, 48, 64)


def step_by_step(view, image, shape, preprocessor):
    """One image, in the order in which one would explain it."""
    if preprocessor._enable_normalize:
        image = image * preprocessor.std + preprocessor.mean
    if not preprocessor._channel_conversion:
        image = image.flip(0)
    image = F.interpolate(
        image[None, :, : shape[0], : shape[1]], view.canvas, mode='bicubic',
        antialias=True,
    )  # fmt: skip
    return (image[0].clamp(0, 255) / 255 - view.mean) / view.std


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
@pytest.mark.parametrize('normalise', [True, False])
def test_every_image_is_treated_as_if_it_were_alone(inputs, bgr_to_rgb, normalise):
    view, preprocessor = TeacherView((24, 16)), student(bgr_to_rgb, normalise)
    if not normalise:
        inputs = inputs.mul(80).add(120)
    images = view(inputs, samples(SHAPES), preprocessor)
    assert images.shape == (3, 3, 24, 16) and images.dtype == torch.float32
    for image, source, shape in zip(images, inputs, SHAPES):
        expected = step_by_step(view, source, shape, preprocessor)
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('shapes, calls', [(SHAPES, 2), ([(40, 56)] * 3, 1)])
def test_images_of_one_shape_are_resized_at_once(inputs, monkeypatch, shapes, calls):
    batches = []

    def interpolate(images, *args, **kwargs):
        batches.append(len(images))
        return F.interpolate(images, *args, **kwargs)

    functions = type('functions', (), dict(interpolate=staticmethod(interpolate)))
    monkeypatch.setattr(view_module, 'F', functions)
    TeacherView(16)(inputs, samples(shapes), student())
    assert len(batches) == calls and sum(batches) == 3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_batches_of_half_precision_become_float32(inputs, dtype):
    view = TeacherView(16)
    rounded = inputs.to(dtype)
    images = view(rounded, samples(SHAPES), student())
    assert images.dtype == torch.float32
    expected = view(rounded.float(), samples(SHAPES), student())
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


def test_a_view_of_the_images_own_size_shows_its_pixels(inputs):
    view = TeacherView((40, 56), mean=(0, 0, 0), std=(1, 1, 1))
    pixels = torch.randint(0, 256, (1, 3, 48, 64))
    image = view(pixels, samples([(40, 56)]), student(normalise=False))
    torch.testing.assert_close(image * 255, pixels[:, :, :40, :56].float())


def test_what_resizing_overshoots_stays_within_the_colours_there_are():
    view = TeacherView((80, 112), mean=(0, 0, 0), std=(1, 1, 1))
    edges = torch.zeros(1, 3, 40, 56)
    edges[..., 20:, :] = 255
    image = view(edges, samples([(40, 56)]), student(normalise=False))
    assert image.min() == 0 and image.max() == 1


def test_the_batch_is_left_as_it_is(inputs):
    before = inputs.clone()
    TeacherView((48, 64))(inputs, samples([(48, 64)] * 3), student(normalise=False))
    assert torch.equal(inputs, before)


def test_tiles_are_cut_out_of_one_canvas_row_by_row(inputs):
    tiled = TeacherView((16, 24), teacher_view='tiles', tiles=(2, 3), overlap=4)
    assert tiled.num_tiles == 6 and tiled.canvas == (28, 64)
    images = tiled(inputs, samples(SHAPES), student())
    assert images.shape == (18, 3, 16, 24)
    whole = TeacherView(tiled.canvas)(inputs, samples(SHAPES), student())
    for b in range(3):
        for r in range(2):
            for c in range(3):
                tile = whole[b, :, 12 * r : 12 * r + 16, 20 * c : 20 * c + 24]
                assert torch.equal(images[6 * b + 3 * r + c], tile)


def test_one_tile_is_the_resized_view(inputs):
    one = TeacherView(16, teacher_view='tiles', tiles=(1, 1))
    batch = (inputs, samples(SHAPES), student())
    assert torch.equal(one(*batch), TeacherView(16)(*batch))


def test_what_is_known_of_an_image_is_repeated_for_its_tiles():
    present = torch.tensor([[True, False], [False, True]])
    tiled = TeacherView(16, teacher_view='tiles', tiles=(1, 2))
    assert tiled.per_tile(present).tolist() == [[True, False]] * 2 + [[False, True]] * 2
    assert tiled.per_tile(None) is None
    assert TeacherView(16).per_tile(present) is present


@pytest.mark.parametrize('changes', [{}, dict(teacher_view='tiles', overlap=4)])
def test_nothing_waits_for_the_device(changes):
    """Values of fake tensors cannot be read."""
    with FakeTensorMode():
        view = TeacherView(16, **changes)
        images = view(torch.rand(3, 3, 48, 64), samples(SHAPES), student())
        assert images.shape[-2:] == (16, 16)
        with pytest.raises(DataDependentOutputException):
            images.sum().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_nothing_waits_for_the_gpu(inputs):
    view = TeacherView(16, teacher_view='tiles', overlap=4)
    batch, preprocessor = inputs.cuda(), student().cuda()
    view(batch, samples(SHAPES), preprocessor)  # the statistics are sent once
    torch.cuda.set_sync_debug_mode('error')
    try:
        view(batch, samples(SHAPES), preprocessor)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(teacher_view='crop'), r"teacher_view='crop' .* \('resize', 'tiles'\)"),
        (dict(teacher_view='tiles', tiles=(0, 2)), r'tiles=\(0, 2\) .* at least 1'),
        (dict(teacher_view='tiles', tiles=(2,)), r'tiles=\(2,\) must be \(rows'),
        (dict(teacher_view='tiles', overlap=16), 'overlap=16 .* less than .* 16x16'),
        (dict(teacher_view='tiles', overlap=-4), 'overlap=-4 must be'),
        (dict(teacher_view='tiles', overlap=4.0), 'overlap=4.0 must be whole pixels'),
        (dict(overlap=4), "overlap=4 needs teacher.teacher_view='tiles'"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TeacherView(16, **changes)


def test_tiles_overlap_by_whole_patches():
    view = TeacherView((16, 32), teacher_view='tiles', overlap=8)
    assert view.overlap_in_patches((4, 8)) == (2, 2)
    assert view.overlap_in_patches((2, 8)) == (1, 2)
    assert TeacherView(14).overlap_in_patches((3, 3)) == (0, 0)
    with pytest.raises(ValueError, match='overlap=8 .* patches of 4 x 3.2 pixels'):
        view.overlap_in_patches((4, 10))
