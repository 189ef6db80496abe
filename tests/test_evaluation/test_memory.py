"""Peaks are the ones a pencil gives."""

import pytest
import torch

from lfi_mmdet.evaluation import peak_memory, resident_bytes


def test_the_peak_is_what_is_held_at_once_not_the_sum():
    def run():
        first = torch.empty(1000)  # 4000 bytes
        second = torch.zeros(500, dtype=torch.float64)  # 8000 at once
        del first
        third = torch.empty(250)  # 5000
        return second, third

    assert peak_memory(run) == 8000


def test_what_stays_counts_and_what_was_there_before_does_not():
    kept = [torch.empty(10_000)]
    assert peak_memory(lambda: kept.append(torch.empty(100))) == 400
    assert peak_memory(lambda: None) == 0
    # what one run leaves behind, the next one may use up
    assert peak_memory(lambda: (kept.clear(), kept.append(torch.empty(300)))) == 800


def test_the_backward_pass_is_seen():
    weight = torch.zeros(1000, requires_grad=True)

    def run():
        weight.exp().sum().backward()
        weight.grad = None

    # exp keeps its output until its gradient is there; the sum and the gradient of
    # the sum are one number each
    assert peak_memory(run) == 4 * (1000 + 1000 + 1 + 1)


def test_a_tensor_and_its_views_are_resident_once():
    base = torch.zeros(100)
    others = [base[10:], base.view(10, 10), torch.zeros(5, dtype=torch.bool)]
    assert resident_bytes([base, *others]) == 405
    assert resident_bytes([]) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_the_peak_on_a_gpu_is_what_is_held_at_once():
    def run():
        first = torch.empty(2**20, device='cuda')
        del first
        return torch.empty(2**19, device='cuda')

    assert peak_memory(run, 'cuda') == 4 * 2**20
