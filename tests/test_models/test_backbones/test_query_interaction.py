"""One interaction against its equations, and what it must not do."""

from collections import Counter
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from lfi_mmdet.models.backbones import InteractionViT
from lfi_mmdet.models.utils import QueryInteraction
from lfi_mmdet.models.utils.interaction import fused_attention

B, N, K, DIMS, HEADS = 2, 20, 5, 24, 3


def make(attn_channels=12, **kwargs) -> QueryInteraction:
    """An interaction in which every parameter, gates included, matters."""
    module = QueryInteraction(DIMS, HEADS, attn_channels, **kwargs)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def make_vit(**kwargs) -> InteractionViT:
    """Two blocks, and an interaction after each."""
    return InteractionViT(
        arch=dict(embed_dims=24, num_layers=2, num_heads=3), pretrain_img_size=32,
        patch_size=8, window_size=0, global_layers=(0, 1), num_queries=4,
        interaction_layers=(0, 1), **kwargs,
    )  # fmt: skip


def arguments(padded=True, carried=True, dtype=torch.float32) -> list:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype).requires_grad_()

    valid = torch.ones(B, N, dtype=torch.bool)
    valid[1, 12:] = False
    return [normal(B, N, DIMS), normal(B, K, DIMS),
            normal(B, HEADS, K, N) if carried else None,
            valid if padded else None]  # fmt: skip


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def literally(module, tokens, queries, previous, valid):
    """DESIGN section 2, image by image and head by head, as it is written there."""
    rows = []
    for b in range(len(tokens)):
        x, q = layer_norm(tokens[b], module.norm_tokens), queries[b]
        logits, read, related, back = [], [], [], []
        layers = module.read_query, module.read_key, module.read_value
        wq, wk, wv = (layer.weight.chunk(HEADS) for layer in layers)
        normed = layer_norm(q, module.norm_read)
        for h in range(HEADS):
            z = (normed @ wq[h].T) @ (x @ wk[h].T).T / len(wq[h]) ** 0.5
            if module.carry is not None and previous is not None:
                z = z + module.carry[h] * previous[b, h]
            logits.append(z)
            seen = x if valid is None else x[valid[b]]
            z = z if valid is None else z[:, valid[b]]
            read.append(z.softmax(-1) @ (seen @ wv[h].T))
        q = q + module.read_out(torch.cat(read, -1))
        if module.relation is not None:
            normed = layer_norm(q, module.relation['norm'])
            parts = module.relation['qkv'].weight.chunk(3)
            for wq, wk, wv in zip(*(part.chunk(HEADS) for part in parts)):
                z = (normed @ wq.T) @ (normed @ wk.T).T / len(wq) ** 0.5
                related.append(z.softmax(-1) @ (normed @ wv.T))
            q = q + module.relation['out'](torch.cat(related, -1))
        out = tokens[b]
        if module.feedback is not None:
            normed = layer_norm(q, module.feedback['norm'])
            parts = (
                module.feedback[part].weight for part in ('token', 'query', 'value')
            )
            for wk, wq, wu in zip(*(part.chunk(HEADS) for part in parts)):
                z = (x @ wk.T) @ (normed @ wq.T).T / len(wq) ** 0.5
                back.append(z.softmax(-1) @ (normed @ wu.T))
            out = out + module.gamma * torch.cat(back, -1)
        rows.append((out, q, torch.stack(logits)))
    return tuple(torch.stack(part) for part in zip(*rows))


def gradients(module, function, args):
    """Gradients of one scalar that looks at all three results."""
    module.zero_grad()
    for arg in args[:3]:
        if arg is not None:
            arg.grad = None
    draw = torch.Generator().manual_seed(4)
    results = function(*args)
    sum(
        (r * torch.randn(r.shape, generator=draw, dtype=r.dtype)).sum() for r in results
    ).backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    found |= {str(i): a.grad for i, a in enumerate(args[:3]) if a is not None}
    return found


PARTS = [{}, dict(carry=False), dict(query_attention=False), dict(feedback=False),
         dict(attn_channels=24), dict(attn_channels=36)]  # fmt: skip


@pytest.mark.parametrize('parts', PARTS, ids=str)
@pytest.mark.parametrize('padded, carried', product((True, False), repeat=2))
@torch.no_grad()
def test_it_computes_what_the_equations_say(parts, padded, carried):
    module, args = make(**parts).eval(), arguments(padded, carried)
    for got, expected in zip(module(*args), literally(module, *args)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('parts', PARTS, ids=str)
@pytest.mark.parametrize('with_cp', [True, False])
def test_its_gradients_are_those_of_the_equations(parts, with_cp):
    module = make(**parts, with_cp=with_cp).double().train()
    args = arguments(dtype=torch.float64)
    expected = gradients(module, lambda *a: literally(module, *a), args)
    got = gradients(module, module, args)
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], msg=name)


@pytest.mark.parametrize('with_cp', [True, False])
def test_under_autocast_it_stays_close_to_the_equations(with_cp):
    module, args = make(with_cp=with_cp).train(), arguments()
    expected = literally(module, *args)
    with torch.autocast('cpu', torch.bfloat16):
        results = module(*args)
    assert results[0].dtype == results[2].dtype == torch.float32
    for got, wanted in zip(results, expected):
        # bfloat16 has 8 bits of mantissa
        torch.testing.assert_close(got.float(), wanted, atol=0.1, rtol=0.03)
    sum(result.float().sum() for result in results).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_whole_in_half_precision_it_keeps_its_types():
    module, args = make().to(torch.bfloat16).eval(), arguments(carried=False)
    args[:2] = [a.detach().to(torch.bfloat16) for a in args[:2]]
    _, _, first = module(*args)
    tokens, queries, logits = module(*args[:2], first, args[3])
    assert (tokens.dtype, queries.dtype) == (torch.bfloat16, torch.bfloat16)
    assert logits.dtype == torch.float32


def test_an_image_that_is_all_padding_gives_no_nan():
    module, args = make(), arguments()
    args[3][:] = False
    assert all(torch.isfinite(result).all() for result in module(*args))


class Operators(TorchDispatchMode):
    """Counts the operators that see all tokens."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [a.shape for a in args if isinstance(a, torch.Tensor)]
        if any(B * N in shape or N in shape for shape in shapes):
            self.seen[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_tokens_are_normalised_once_and_projected_in_one_product():
    with Operators() as operators:
        make().eval()(*arguments(padded=False))
    assert operators.seen['native_layer_norm'] == 1
    assert operators.seen['mm'] + operators.seen['addmm'] == 1
    # what is looked at, and what is read
    assert operators.seen['bmm'] == 2


@pytest.mark.parametrize('width', [4, 8, 12])
def test_attention_of_any_widths_takes_the_fused_kernel(width):
    query, key = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 5, 8)
    value = torch.randn(2, 3, 5, width)
    expected = (query @ key.mT / 8**0.5).softmax(-1) @ value
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error if it cannot be used
        got = fused_attention(query, key, value)
    torch.testing.assert_close(got, expected)


def kept_bytes(module, args) -> int:
    """Bytes that the forward pass keeps for the backward pass, arguments apart."""
    given = {a.untyped_storage().data_ptr() for a in [*args, *module.parameters()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = module(*args)
    assert results[0].requires_grad
    return sum(kept.values())


def test_with_cp_nothing_inside_is_kept_in_training():
    assert kept_bytes(make(with_cp=True).train(), arguments()) == 0
    assert kept_bytes(make().train(), arguments()) > 0


def test_nothing_in_it_waits_for_the_device():
    # tensors without values: to ask for one is an error
    with FakeTensorMode():
        model = make_vit().train()
        with model.interactions([(32, 20), (12, 32)]) as trace:
            (out,) = model(torch.randn(2, 3, 32, 32))
        (out.sum() + trace.logits[-1].sum()).backward()
    assert model.queries.grad.shape == (4, 24)


@pytest.mark.parametrize('with_cp', [True, False])
def test_recording_changes_neither_features_nor_gradients(with_cp):
    model = make_vit(interaction_cp=with_cp).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    images, found = torch.randn(2, 3, 32, 32), []
    for record in (True, False):
        model.zero_grad()
        with model.interactions([(32, 20), (12, 32)], record=record):
            (out,) = model(images)
        out.square().sum().backward()
        found.append([out, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_queries_that_reach_nobody_are_not_asked():
    model = make_vit(feedback=False)
    called = []
    model.interaction.register_forward_pre_hook(lambda *_: called.append(1))
    with model.interactions([(32, 20)], record=False):
        model(torch.randn(1, 3, 32, 32))
    assert not called
    with model.interactions([(32, 20)]):
        model(torch.randn(1, 3, 32, 32))
    assert len(called) == 2
