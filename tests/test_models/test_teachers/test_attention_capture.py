from __future__ import annotations

import pytest
import torch
from torch import nn

import lfi_mmdet  # noqa: F401  provides mmcv's ops before mmdet is imported
from lfi_mmdet.models.teachers.attention_capture import (
    capture_attention,
    value_path,
)

from .later_open_clip import LaterAttention

#: Kinds of attention that open_clip 4 can build
LATER = [
    {},
    dict(bias=False),
    dict(key_dims=24),
    dict(qk_norm=True),
    dict(cosine=True),
    dict(head_scale=True, inner_norm=True),
]


def run(attn: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor):
    """Maps recomputed by the capture, and those torch returns itself."""
    with capture_attention([attn]) as (record,):
        attn(query, key, value=key, need_weights=False)
    expected = attn(query, key, key, need_weights=True, average_attn_weights=False)
    return record, expected[1]


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('key_dims', [16, 24])
def test_recomputed_maps_equal_those_of_torch(batch_first, bias, key_dims):
    attn = nn.MultiheadAttention(
        16, 4, bias=bias, kdim=key_dims, vdim=key_dims, batch_first=batch_first
    ).eval()
    if bias:
        nn.init.normal_(attn.in_proj_bias)
    query, key = torch.randn(2, 5, 16), torch.randn(2, 7, key_dims)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    record, expected = run(attn, query, key)
    torch.testing.assert_close(record.weights(), expected)


def test_only_the_rows_that_are_wanted_are_recomputed():
    attn = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    record, expected = run(attn, torch.randn(2, 5, 16), torch.randn(2, 7, 16))
    maps = record.weights(torch.tensor([[4, 0], [2, 2]]))
    torch.testing.assert_close(maps[0], expected[0][:, [4, 0]])
    torch.testing.assert_close(maps[1], expected[1][:, [2, 2]])


def test_maps_are_float32_under_autocast():
    attn = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    query = torch.randn(1, 3, 16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        with capture_attention([attn]) as (record,):
            attn(query.bfloat16(), query.bfloat16(), query.bfloat16())
        maps = record.weights()
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2, 3))


def test_hooks_are_gone_after_the_body_and_after_an_error_in_it():
    attn = nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(1, 3, 16)
    with capture_attention([attn]):
        attn(x, x, x)
    with pytest.raises(ZeroDivisionError), capture_attention([attn]):
        raise ZeroDivisionError
    assert not attn._forward_pre_hooks


def test_a_module_that_did_not_run_is_an_error():
    used, unused = (nn.MultiheadAttention(16, 2) for _ in range(2))
    x = torch.randn(3, 1, 16)
    with pytest.raises(RuntimeError, match=r'modules \[1\] of 2 did not run'):
        with capture_attention([used, unused]):
            used(x, x, x)


def test_a_module_that_runs_twice_is_an_error():
    attn = nn.MultiheadAttention(16, 2)
    x = torch.randn(3, 1, 16)
    with pytest.raises(RuntimeError, match='twice'), capture_attention([attn]):
        attn(x, x, x)
        attn(x, x, x)


def test_a_masked_module_is_an_error_rather_than_a_wrong_map():
    attn = nn.MultiheadAttention(16, 2)
    x = torch.randn(3, 1, 16)
    mask = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match='attn_mask'), capture_attention([attn]):
        attn(x, x, x, attn_mask=mask)


@pytest.mark.parametrize('kind', LATER)
def test_maps_of_the_later_attention_equal_those_formed_explicitly(kind):
    torch.manual_seed(0)
    attn = LaterAttention(16, 4, **kind).eval()
    query, key = torch.randn(2, 5, 16), torch.randn(2, 7, kind.get('key_dims', 16))
    with capture_attention([attn]) as (record,):
        attn(query, k_x=key, v_x=key)
    maps = record.weights()
    torch.testing.assert_close(maps, attn.maps(query, key))
    assert maps.std(-1).min() > 1e-3
    rows = record.weights(torch.tensor([[3], [1]]))
    torch.testing.assert_close(rows, torch.stack([maps[0][:, [3]], maps[1][:, [1]]]))


def test_the_later_attention_may_look_at_its_own_input():
    attn, x = LaterAttention(16, 4).eval(), torch.randn(2, 5, 16)
    with capture_attention([attn]) as (record,):
        attn(x)
    torch.testing.assert_close(record.weights(), attn.maps(x, x))


def test_half_precision_modules_give_float32_maps():
    attn = LaterAttention(16, 4, qk_norm=True).eval()
    x = torch.randn(2, 5, 16)
    expected = attn.maps(x, x)
    with capture_attention([attn.bfloat16()]) as (record,):
        attn(x.bfloat16())
    maps = record.weights()
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected, atol=0.05, rtol=0.1)


@pytest.mark.parametrize('kind', [*LATER, 'torch'])
def test_with_one_key_attention_returns_its_value_path(kind):
    if kind == 'torch':
        attn = nn.MultiheadAttention(16, 4, kdim=24, vdim=24, batch_first=True)
        nn.init.normal_(attn.in_proj_bias)
        value = torch.randn(3, 1, 24)
        expected = attn(torch.randn(3, 2, 16), value, value)[0]
    else:
        attn = LaterAttention(16, 4, **kind)
        value = torch.randn(3, 1, kind.get('key_dims', 16))
        expected = attn(torch.randn(3, 2, 16), k_x=value, v_x=value)
    got = value_path(attn, value)
    torch.testing.assert_close(got.expand(-1, 2, -1), expected)


def test_what_the_later_attention_may_hold_and_is_not_understood_is_named():
    attn = LaterAttention(16, 4)
    attn.sink = nn.Parameter(torch.zeros(4))
    with pytest.raises(TypeError, match=r"LaterAttention with \['sink'\]"):
        with capture_attention([attn]):
            pass


def test_masks_of_the_later_attention_are_an_error():
    attn, x = LaterAttention(16, 4), torch.randn(2, 5, 16)
    with pytest.raises(RuntimeError, match='attn_mask'), capture_attention([attn]):
        attn(x, attn_mask=torch.zeros(5, 5))


@pytest.mark.parametrize(
    'module', [nn.Linear(4, 4), nn.MultiheadAttention(4, 1, add_bias_kv=True)]
)
def test_a_module_of_unknown_kind_is_named(module):
    with pytest.raises(TypeError, match=type(module).__name__):
        with capture_attention([module]):
            pass
