"""The pyramid of ViTDet from one map."""

import pytest
import torch

from lfi_mmdet.models.necks import SimpleFPN


def test_levels_run_from_four_times_to_half_the_resolution_and_on():
    neck = SimpleFPN(in_channels=16, out_channels=8, num_outs=5)
    outs = neck((torch.randn(2, 16, 8, 12),))
    shapes = [tuple(out.shape) for out in outs]
    assert shapes == [
        (2, 8, 32, 48), (2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3),
    ]  # fmt: skip


def test_it_reads_the_last_map_only():
    neck = SimpleFPN(in_channels=16, out_channels=8)
    first, last = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    for a, b in zip(neck((first, last)), neck((last,))):
        assert torch.equal(a, b)


def test_each_level_is_normalised_over_its_channels():
    for out in SimpleFPN(in_channels=16, out_channels=8)((torch.randn(2, 16, 4, 4),)):
        torch.testing.assert_close(
            out.mean(1), torch.zeros_like(out.mean(1)), atol=1e-5, rtol=0
        )


def test_levels_can_be_chosen():
    neck = SimpleFPN(in_channels=16, out_channels=8, scales=(2, 0.5), num_outs=3)
    outs = neck((torch.randn(1, 16, 8, 8),))
    assert [tuple(out.shape[2:]) for out in outs] == [(16, 16), (4, 4), (2, 2)]
    with pytest.raises(ValueError, match=r'scales=\[3\]; choose from'):
        SimpleFPN(16, scales=(3, 1))


def test_fewer_than_four_levels_are_refused():
    with pytest.raises(ValueError, match='num_outs=3'):
        SimpleFPN(16, num_outs=3)
