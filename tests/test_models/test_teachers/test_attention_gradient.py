from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from timm.layers.attention import Attention
from timm.models.eva import EvaAttention
from torch import nn

import lfi_mmdet  # noqa: F401  provides mmcv's ops before mmdet is imported
from lfi_mmdet.models.teachers.attention_gradient import explicit_attention, relevance

from .later_open_clip import LaterAttention

CAUSAL = torch.full((5, 5), float('-inf')).triu(1)


class Chain(nn.Module):
    """Two residual attention layers, as the towers of teachers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.attns = nn.ModuleList(
            nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2)
        )
        for attn in self.attns:
            attn.in_proj_weight.data *= 3
            nn.init.normal_(attn.in_proj_bias)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None):
        for norm, attn in zip(self.norms, self.attns):
            y = norm(x)
            x = x + attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x

    def layer(self, index: int, x: torch.Tensor, probs=None, mask=None):
        """A layer step by step, with its own maps or given ones."""
        attn, y = self.attns[index], self.norms[index](x)
        qkv = F.linear(y, attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in qkv.chunk(3, -1))
        if probs is None:
            logits = q @ k.mT / 2
            probs = (logits if mask is None else logits + mask).softmax(-1)
        out = (probs @ v).transpose(1, 2).flatten(2)
        return x + attn.out_proj(out), probs


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain()


def score_of(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0] * torch.linspace(-1, 1, 16)).sum(-1).exp()


@pytest.mark.parametrize('mask', [None, CAUSAL])
def test_maps_and_their_gradients_equal_those_worked_out_by_hand(chain, mask):
    x = torch.randn(2, 5, 16)
    with explicit_attention(chain.attns) as records:
        score = score_of(chain(x, mask))
    got = torch.autograd.grad(score.sum(), [r.probs for r in records])
    middle, first = chain.layer(0, x, mask=mask)
    first = first.requires_grad_()
    middle, _ = chain.layer(0, x, first)
    _, second = chain.layer(1, middle, mask=mask)
    last, _ = chain.layer(1, middle, second)
    expected = torch.autograd.grad(score_of(last).sum(), [first, second])
    for record, maps, grad, right in zip(records, (first, second), got, expected):
        torch.testing.assert_close(record.probs, maps)
        torch.testing.assert_close(grad, right, atol=1e-5, rtol=1e-4)
        assert grad.abs().max() > 1e-3
    assert mask is None or (records[1].probs.triu(1) == 0).all()


def test_gradients_equal_finite_differences(chain):
    chain, x = chain.double(), torch.randn(2, 5, 16, dtype=torch.float64)
    with explicit_attention(chain.attns) as records:
        score = score_of(chain(x).double())
    grads = torch.autograd.grad(score.sum(), [r.probs for r in records])
    middle, first = chain.layer(0, x)
    second = chain.layer(1, middle)[1]

    def of_first(probs: torch.Tensor) -> torch.Tensor:
        middle, _ = chain.layer(0, x, probs)
        return score_of(chain.layer(1, middle)[0]).sum()

    def of_second(probs: torch.Tensor) -> torch.Tensor:
        return score_of(chain.layer(1, middle, probs)[0]).sum()

    # the last layer's row of token 0 is the only one that reaches the score
    places = ((of_first, first, (0, 1, 2, 3)), (of_second, second, (1, 3, 0, 4)))
    for (function, maps, place), grad in zip(places, grads):
        step = torch.zeros_like(maps)
        step[place] = 1e-5
        slope = (function(maps + step) - function(maps - step)) / 2e-5
        assert grad[place] == pytest.approx(float(slope), rel=1e-5)
        assert abs(slope) > 1e-4


def self_attended(attn: nn.Module, x: torch.Tensor, **kwargs):
    return attn(x, **kwargs)


def torch_attended(attn: nn.Module, x: torch.Tensor, **kwargs):
    batch_first = attn.batch_first
    x = x if batch_first else x.transpose(0, 1)
    out = attn(x, x, x, **kwargs)[0]
    return out if batch_first else out.transpose(0, 1)


LATER_CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
ROPE = torch.randn(4, 16)
NORM = dict(norm_layer=nn.LayerNorm, qk_norm=True)
#: Module, how it is called
KINDS = {
    'torch': (lambda: nn.MultiheadAttention(16, 4, batch_first=True), {}),
    'torch, length first': (lambda: nn.MultiheadAttention(16, 4), {}),
    'torch, no bias': (lambda: nn.MultiheadAttention(16, 4, bias=False), {}),
    'torch, causal': (
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
        dict(attn_mask=CAUSAL, need_weights=False),
    ),
    'torch, what is not seen': (
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
        dict(attn_mask=~LATER_CAUSAL, is_causal=True, need_weights=False),
    ),
    'torch, a mask per head': (
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
        dict(attn_mask=torch.randn(8, 5, 5)),
    ),
    'torch, padded': (
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
        dict(key_padding_mask=torch.tensor([[False] * 5, [False] * 3 + [True] * 2])),
    ),
    'later': (lambda: LaterAttention(16, 4), {}),
    'later, causal': (lambda: LaterAttention(16, 4), dict(attn_mask=CAUSAL)),
    'later, what is seen': (
        lambda: LaterAttention(16, 4),
        dict(attn_mask=LATER_CAUSAL),
    ),
    'later, a mask per head': (
        lambda: LaterAttention(16, 4, qk_norm=True, head_scale=True),
        dict(attn_mask=torch.randn(8, 5, 5)),
    ),
    'later, cosines': (lambda: LaterAttention(16, 4, cosine=True), {}),
    'timm': (lambda: Attention(16, 2, qkv_bias=True, gated=True, **NORM), {}),
    'timm, causal': (lambda: Attention(16, 2), dict(is_causal=True)),
    'EVA': (lambda: EvaAttention(16, 2, **NORM), dict(rope=ROPE)),
    'EVA, separate': (
        lambda: EvaAttention(16, 2, qkv_fused=False, **NORM),
        dict(attn_mask=CAUSAL),
    ),
    'SigLIP': (lambda: AttentionPoolLatent(16, num_heads=2), {}),
}


#: Those of timm have a second way to compute attention
UNFUSED = [kind for kind in KINDS if kind.startswith(('timm', 'EVA', 'SigLIP'))]


@pytest.mark.parametrize(
    'kind, fused', [*((k, True) for k in KINDS), *((k, False) for k in UNFUSED)]
)
def test_the_output_stays_and_hangs_on_the_maps(kind, fused):
    torch.manual_seed(0)
    build, kwargs = KINDS[kind]
    attn, x = build().eval().requires_grad_(False), torch.randn(2, 5, 16)
    attn.fused_attn = fused
    call = torch_attended if kind.startswith('torch') else self_attended
    with torch.no_grad():
        expected = call(attn, x, **kwargs)
    with torch.no_grad(), explicit_attention([attn]) as (record,):
        out = call(attn, x, **kwargs)
        (grad,) = torch.autograd.grad(out.sum(), [record.probs])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert record.probs.shape[:2] == (2, attn.num_heads)
    torch.testing.assert_close(
        record.probs.sum(-1), torch.ones_like(record.probs[..., 0])
    )
    assert grad.shape == record.probs.shape and grad.abs().max() > 1e-4
    if 'causal' in kind or 'seen' in kind:
        assert (record.probs.triu(1) == 0).all()
    if 'padded' in kind:
        assert (record.probs[1, :, :, 3:] == 0).all()


def test_key_dimensions_of_their_own_and_returned_weights():
    torch.manual_seed(0)
    attn = nn.MultiheadAttention(16, 4, kdim=24, vdim=24, batch_first=True).eval()
    query, key = torch.randn(2, 3, 16), torch.randn(2, 7, 24)
    expected = attn(query, key, key, average_attn_weights=False)
    with explicit_attention([attn]) as (record,):
        out = attn(query, key, key, average_attn_weights=False)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(record.probs, expected[1])
    with explicit_attention([attn]):
        torch.testing.assert_close(attn(query, key, key)[1], expected[1].mean(1))


@pytest.mark.parametrize('guard', [torch.no_grad, torch.inference_mode])
def test_it_works_whatever_the_caller_has_switched_off(chain, guard):
    expected = score_of(chain(x := torch.randn(2, 5, 16)))
    with guard():
        entering = x * 1  # an inference tensor in inference mode
        with explicit_attention(chain.attns) as records:
            score = score_of(chain(entering))
            grads = torch.autograd.grad(score.sum(), [r.probs for r in records])
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (guard is torch.inference_mode)
    assert all(grad.abs().max() > 0 for grad in grads)
    torch.testing.assert_close(score, expected)


def test_maps_are_float32_in_low_precision_and_under_autocast(chain):
    x = torch.randn(2, 5, 16)
    with explicit_attention(chain.attns) as exact:
        expected = chain(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        with explicit_attention(chain.attns) as records:
            out = chain(x)
    low = chain.bfloat16()
    with explicit_attention(low.attns) as rounded:
        out_low = low(x.bfloat16())
    assert out_low.dtype == torch.bfloat16
    for pair in zip(exact, records), zip(exact, rounded):
        for right, record in pair:
            assert record.probs.dtype == torch.float32
            torch.testing.assert_close(record.probs, right.probs, atol=0.06, rtol=0.2)
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize('index', [0, 1])
def test_modules_that_are_not_asked_for_stay_as_they_are(chain, index):
    x = torch.randn(2, 5, 16)
    with explicit_attention(chain.attns[index : index + 1]) as (record,):
        out = chain(x)
        weights = out.softmax(-1)
    torch.testing.assert_close(out, chain(x))
    torch.testing.assert_close(weights, chain(x).softmax(-1))
    assert record.probs.is_leaf


class Bare(nn.Module):
    """Attention that takes its input as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_inputs_that_autograd_could_not_keep_are_copied():
    bare = Bare()
    with torch.inference_mode():
        x = torch.randn(2, 4, 5, 8)
        with explicit_attention([bare]) as (record,):
            (grad,) = torch.autograd.grad(bare(x).sum(), [record.probs])
    expected = x.sum(-1)[:, :, None].expand(-1, -1, 5, -1)
    torch.testing.assert_close(grad, expected)


def test_hooks_are_gone_after_the_body_and_after_an_error_in_it(chain):
    with explicit_attention(chain.attns):
        chain(torch.randn(2, 5, 16))
    with pytest.raises(RuntimeError), explicit_attention(chain.attns):
        chain(torch.randn(2, 5, 7))
    for attn in chain.attns:
        assert not attn._forward_pre_hooks and not attn._forward_hooks
    x = torch.randn(2, 5, 16)
    assert not chain(x).requires_grad
    torch.testing.assert_close(torch.softmax(x, -1).sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize(
    'run, complaint',
    [
        (lambda chain, x: chain.layer(0, x), r'modules \[0, 1\] of 2 did not run'),
        (lambda chain, x: chain(chain(x)), 'formed maps twice'),
        (lambda chain, x: chain.attns[0].train()(x, x, x), 'drops 50% of its maps'),
    ],
)
def test_what_would_give_wrong_maps_is_an_error(chain, run, complaint):
    chain.attns[0].dropout = 0.5
    with pytest.raises(RuntimeError, match=complaint):
        with explicit_attention(chain.attns):
            run(chain, torch.randn(2, 5, 16))


def test_a_module_without_maps_is_an_error():
    linear = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match='formed no maps'):
        with explicit_attention([linear]):
            linear(torch.randn(2, 4))


def test_relevance_keeps_what_raises_the_score():
    probs = torch.tensor([[[[0.25, 0.75]], [[0.5, 0.5]]]])
    grads = torch.tensor([[[[4.0, -2.0]], [[2.0, 6.0]]]])
    expected = torch.tensor([[[[1.0, 0.0]], [[1.0, 3.0]]]])
    torch.testing.assert_close(relevance(probs, grads, heads='keep'), expected)
    torch.testing.assert_close(relevance(probs, grads), expected.mean(1))
    with pytest.raises(ValueError, match="heads='some'"):
        relevance(probs, grads, heads='some')
