"""Counted parameters and operations are those of the formulas."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmdet.registry import MODELS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lfi_mmdet.evaluation import (
    count_flops,
    count_parameters,
    demo_data,
    full_proposals,
)
from tests import small_detectors


class Attention(nn.Module):
    def __init__(self, dims: int = 8, heads: int = 2, masked: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)
        self.heads, self.masked = heads, masked

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = torch.zeros(x.shape[1], x.shape[1]) if self.masked else None
        out = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('kernel', [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_is_counted_whichever_kernel_would_run(kernel, masked):
    batch, tokens, dims = 2, 10, 8
    model, x = Attention(dims, masked=masked), torch.randn(batch, tokens, dims)
    with sdpa_kernel(kernel):
        count = count_flops(model, lambda: model(x))
    projections = 2 * batch * tokens * dims * (3 * dims + dims)
    attention = 2 * 2 * batch * tokens * tokens * dims
    assert count.total == projections + attention
    assert count.by_operator == {'aten.addmm': projections, 'aten.bmm': attention}


def test_a_convolution_is_counted():
    model, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(1, 3, 6, 7)
    assert count_flops(model, lambda: model(x)).total == 2 * 5 * 3 * 3 * 3 * 6 * 7


def test_counting_leaves_modes_and_gradients_as_they_were():
    model, x = Attention(), torch.randn(1, 4, 8)
    model.proj.eval()
    model.qkv.weight.requires_grad_(False)
    count_flops(model, lambda: model(x))
    assert [m.training for m in (model, model.qkv, model.proj)] == [True, True, False]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ['qkv.weight']
    with pytest.raises(RuntimeError):
        count_flops(model, lambda: model(torch.zeros(1, 4, 9)))
    assert model.proj.weight.requires_grad


def test_operators_without_a_formula_are_named():
    class Suppress(nn.Module):
        def forward(self, boxes):
            return torchvision.ops.nms(boxes, torch.ones(len(boxes)), 0.5)

    model = Suppress()
    count = count_flops(model, lambda: model(torch.rand(3, 4)))
    assert (count.total, count.uncounted) == (0, {'torchvision::nms': 1})


def test_the_interaction_is_all_that_a_detector_with_queries_has_more(tiny_config):
    cfg = copy.deepcopy(tiny_config.model)
    cfg.teacher = None
    with_queries = MODELS.build(cfg)
    cfg.backbone.num_queries = 0
    without = MODELS.build(cfg)

    ours, plain = count_parameters(with_queries), count_parameters(without)
    assert ours['total'] == sum(p.numel() for p in with_queries.parameters())
    assert ours['backbone'] == sum(
        p.numel() for p in with_queries.backbone.parameters()
    )
    assert plain['interaction'] == 0 < ours['interaction']
    for part in ('total', 'backbone'):
        assert ours[part] - plain[part] == ours['interaction']

    def flops(model):
        inputs = model.data_preprocessor(demo_data(3, (64, 64)))
        with full_proposals(model):
            return count_flops(model, lambda: model(**inputs, mode='tensor'))

    ours, plain = flops(with_queries), flops(without)
    assert plain.interaction == 0 < ours.interaction < ours.backbone < ours.total
    assert ours.total - plain.total == ours.interaction
    assert ours.backbone - plain.backbone == ours.interaction
    assert 'torchvision::roi_align' in ours.uncounted


def test_projections_of_stages_belong_to_the_interaction():
    cfg = small_detectors.small_cfg('mask-rcnn_r50')
    cfg.model.update(teacher=None, distiller=None)
    cfg.model.interaction.update(feedback=True, num_queries=3)
    with_queries = small_detectors.build(cfg)
    cfg.model.update(type='MaskRCNN')
    cfg.model.pop('interaction'), cfg.model.pop('teacher'), cfg.model.pop('distiller')
    without = small_detectors.build(cfg)

    def flops(model):
        inputs = model.data_preprocessor(demo_data(3, (128, 128)))
        with full_proposals(model):
            return count_flops(model, lambda: model(**inputs, mode='tensor'))

    ours, plain = flops(with_queries), flops(without)
    assert ours.total - plain.total == ours.interaction > 0
    assert ours.backbone - plain.backbone == ours.interaction


def test_a_distiller_is_not_deployed(tiny_config):
    cfg = copy.deepcopy(tiny_config.model)
    student = MODELS.build(dict(cfg, teacher=None))
    student.distiller = nn.Linear(3, 4)
    count = count_parameters(student)
    assert count['distiller'] == 16
    assert count['total'] == sum(p.numel() for p in student.parameters()) - 16
