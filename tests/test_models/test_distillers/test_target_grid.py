"""Teacher maps on the student's grid."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_mmdet.models.distillers import resample_maps
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
