"""Teacher maps on the student's grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lfi_mmdet.models.distillers import resample_maps
from lfi_mmdet.models.distillers.target_grid import resample_tokens
from lfi_mmdet.structures import valid_patches


def test_the_same_grid_changes_nothing():
    maps = torch.rand(2, 3, 4, 6)
    maps /= maps.sum((-2, -1), keepdim=True)
    out = resample_maps(maps, [(32, 48)] * 2, (32, 48), (4, 6), None)
    torch.testing.assert_close(out, maps.flatten(2))


def test_a_finer_teacher_is_averaged_over_each_patch():
    maps = torch.rand(1, 1, 8, 8)
    maps /= maps.sum()
    out = resample_maps(maps, [(32, 32)], (32, 32), (4, 4), None)
    expected = torch.nn.functional.avg_pool2d(maps, 2).flatten(2) * 4
    torch.testing.assert_close(out, expected)


def test_padding_gets_nothing_and_the_rest_sums_to_one():
    shapes, grid = [(24, 32), (32, 16)], (4, 4)
    valid = valid_patches(shapes, grid, (8, 8))
    out = resample_maps(torch.rand(2, 3, 5, 7), shapes, (32, 32), grid, valid)
    assert (out[~valid[:, None].expand_as(out)] == 0).all()
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 3))


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('side', [7, 14, 32, 64])
def test_what_lies_in_the_strip_beyond_the_last_patch_is_not_lost(axis, side):
    """200 pixels are 12 patches of 16 and a strip of 8, whose patch is padding."""
    grid, shape = (13, 13), (200, 200)
    valid = valid_patches([shape], grid, (16, 16))
    assert valid.sum() == 12 * 12
    maps = torch.zeros(1, 1, side, side)
    maps.select(2 + axis, -1).fill_(1 / side)
    out = resample_maps(maps, [shape], (208, 208), grid, valid).view(grid)
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    assert out.sum(1 - axis)[10:12].sum() > 0.99
    assert out.sum(1 - axis)[11] >= out.sum(1 - axis)[10]


@pytest.mark.parametrize('side', [4, 8, 3])
def test_tokens_are_averages_of_neighbours_and_0_on_padding(side):
    shapes, grid = [(24, 32), (32, 16)], (4, 4)
    valid = valid_patches(shapes, grid, (8, 8))
    # a channel that is constant, and one that grows from left to right
    tokens = torch.ones(2, 2, side, side)
    tokens[:, 1] = (torch.arange(side) + 0.5) / side
    out = resample_tokens(tokens, shapes, (32, 32), grid, valid)
    torch.testing.assert_close(out[:, 0], valid.float())
    out = out.unflatten(2, grid)
    assert (out[0, 1, :3].diff(dim=1) > 0).all() and (out[0, :, 3] == 0).all()
    if side == 4:  # the first image has the teacher's grid; the border is smoothed
        torch.testing.assert_close(out[0, 1, 0, 1:3], tokens[0, 1, 0, 1:3])


@pytest.mark.parametrize('finer', ['rows', 'columns'])
def test_each_axis_is_averaged_only_where_the_teacher_is_finer(finer):
    maps = torch.rand(1, 1, 8, 4)
    maps /= maps.sum()
    expected = torch.nn.functional.avg_pool2d(maps, (2, 1)) * 2
    if finer == 'columns':
        maps, expected = maps.mT, expected.mT
    out = resample_maps(maps, [(32, 32)], (32, 32), (4, 4), None)
    torch.testing.assert_close(out, expected.flatten(2))


def test_autocast_does_not_round_the_maps():
    maps = torch.rand(1, 2, 7, 7)
    plain = resample_maps(maps, [(30, 40)], (32, 40), (4, 5), None)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = resample_maps(maps, [(30, 40)], (32, 40), (4, 5), None)
    assert torch.equal(plain, mixed)


def test_nothing_waits_for_the_device():
    """Values of fake tensors cannot be read."""
    shapes = [(30, 40), (32, 24)]
    with FakeTensorMode():
        valid = valid_patches(shapes, (4, 5), (8, 8))
        out = resample_maps(torch.rand(2, 3, 7, 7), shapes, (32, 40), (4, 5), valid)
        assert out.shape == (2, 3, 20)
        with pytest.raises(DataDependentOutputException):
            out.sum().item()


def test_uniform_attention_stays_uniform_over_the_image():
    valid = valid_patches([(20, 30)], (4, 4), (8, 8))
    maps = torch.full((1, 1, 7, 7), 1 / 49)
    out = resample_maps(maps, [(20, 30)], (32, 32), (4, 4), valid)
    inside = out[0, 0][valid[0]]
    torch.testing.assert_close(inside, torch.full_like(inside, 1 / len(inside)))


def test_float64_stays_float64():
    out = resample_maps(torch.rand(1, 1, 3, 3).double(), [(8, 8)], (8, 8), (2, 2), None)
    assert out.dtype == torch.float64


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(40, 128), width=st.integers(40, 128), side=st.integers(5, 40),
    y=st.floats(0.1, 0.9), x=st.floats(0.1, 0.9),
)  # fmt: skip
def test_a_bright_spot_stays_where_it_is_within_a_patch(height, width, side, y, x):
    """For any image size, padding and resolution of the teacher."""
    maps = torch.zeros(1, 1, side, side)
    row, col = int(y * side), int(x * side)
    maps[0, 0, row, col] = 1
    patch, grid = 8, (16, 16)
    valid = valid_patches([(height, width)], grid, (patch, patch))
    out = resample_maps(maps, [(height, width)], (128, 128), grid, valid).view(grid)
    rows, cols = (torch.arange(16) + 0.5) * patch, (torch.arange(16) + 0.5) * patch
    centre = ((out.sum(1) * rows).sum().item(), (out.sum(0) * cols).sum().item())
    spot = ((row + 0.5) / side * height, (col + 0.5) / side * width)
    tolerance = max(patch, height / side, width / side)
    assert abs(centre[0] - spot[0]) <= tolerance
    assert abs(centre[1] - spot[1]) <= tolerance
