"""The backbone: a plain ViT first, then the queries and what they may change."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from lfi_mmdet.models.backbones import InteractionViT

ARCH = dict(embed_dims=24, num_layers=3, num_heads=3)


def make_vit(**kwargs) -> InteractionViT:
    """A three-layer ViT for images of 32 pixels in patches of 8."""
    cfg = dict(
        arch=ARCH,
        pretrain_img_size=32,
        patch_size=8,
        window_size=0,
        global_layers=(0, 1, 2),
        interaction_layers=(0, 1, 2),
    )
    model = InteractionViT(**{**cfg, **kwargs})
    model.init_weights()
    return model


def randomise(model: torch.nn.Module) -> None:
    """Give every parameter, gates included, a value that matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32)


def test_without_queries_it_computes_what_timms_vit_computes(images):
    ours = make_vit()
    theirs = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0,
        class_token=False, global_pool='', final_norm=False,
    )  # fmt: skip
    result = ours.load_state_dict(theirs.state_dict(), strict=True)
    assert not result.missing_keys
    expected = theirs.forward_features(images).transpose(1, 2).view(2, 24, 4, 4)
    torch.testing.assert_close(ours(images)[0], expected, atol=1e-5, rtol=1e-5)


def test_windowed_attention_sees_only_its_window(images):
    model = make_vit(window_size=2, global_layers=(2,), out_layers=(1,),
                     interaction_layers=(0,))  # fmt: skip
    changed = images.clone()
    changed[..., 16:] += 1  # the right half of the image, whole windows
    before, after = model(images)[0], model(changed)[0]
    torch.testing.assert_close(before[..., :2], after[..., :2])
    assert not torch.allclose(before[..., 2:], after[..., 2:])


def test_global_attention_sees_everything(images):
    model = make_vit(window_size=2, global_layers=(0,), out_layers=(0,),
                     interaction_layers=(0,))  # fmt: skip
    changed = images.clone()
    changed[..., 16:] += 1
    assert not torch.allclose(model(images)[0][..., :2], model(changed)[0][..., :2])


def test_relative_positions_enter_the_attention(images):
    model = make_vit(use_rel_pos=True, window_size=3, global_layers=(2,))
    before = model(images)[0]
    torch.nn.init.normal_(model.blocks[0].attn.rel_pos_h)
    assert model.blocks[0].attn.rel_pos_h.shape == (5, 8)
    assert model.blocks[2].attn.rel_pos_w.shape == (7, 8)
    assert not torch.allclose(before, model(images)[0])


def test_other_image_sizes_resize_the_positions_and_pad_the_last_patch():
    model = make_vit(num_queries=2)
    with model.interactions() as trace:
        (out,) = model(torch.randn(1, 3, 45, 64))
    assert out.shape == (1, 24, 6, 8)
    assert trace.grid == (6, 8)
    assert trace.logits[0].shape == (1, 3, 2, 48)


def test_with_zero_gate_the_queries_change_nothing(images):
    plain, lfi = make_vit(), make_vit(num_queries=5)
    lfi.load_state_dict(plain.state_dict(), strict=False)
    with lfi.interactions():
        recorded = lfi(images)[0]
    assert torch.equal(recorded, plain(images)[0])


def test_feedback_lets_the_queries_change_the_tokens(images):
    model = make_vit(num_queries=5)
    before = model(images)[0]
    torch.nn.init.ones_(model.interaction.gamma)
    assert not torch.allclose(before, model(images)[0])


def test_without_feedback_no_query_weight_changes_the_output(images):
    plain = make_vit()
    lfi = make_vit(num_queries=5, feedback=False)
    randomise(lfi)
    plain.load_state_dict(lfi.state_dict(), strict=False)
    with lfi.interactions():
        recorded = lfi(images)[0]
    assert torch.equal(recorded, plain(images)[0])
    assert torch.equal(lfi(images)[0], plain(images)[0])


def test_nothing_is_recorded_without_being_asked_for_and_nothing_is_left(images):
    model = make_vit(num_queries=5)
    before = set(vars(model)) | set(dict(model.named_buffers()))
    with model.interactions(record=False) as trace:
        model(images)
    assert not trace.logits
    with model.interactions() as trace:
        model(images)
    model(images)
    assert len(trace.logits) == len(trace.queries) == 3
    assert set(vars(model)) | set(dict(model.named_buffers())) == before
    assert model._trace is None


def test_a_recording_inside_a_recording_is_refused(images):
    model = make_vit(num_queries=5)
    with model.interactions(), pytest.raises(RuntimeError, match='under way'):
        with model.interactions():
            pass


def test_the_first_logits_are_scaled_products_and_carry_adds_the_earlier_ones(images):
    model = make_vit(num_queries=5, feedback=False, query_attention=False)
    randomise(model)
    inter = model.interaction
    seen = []
    hook = inter.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    with model.interactions() as trace:
        model(images)
    hook.remove()
    previous = 0.0
    for (tokens, queries), logits in zip(seen, trace.logits):
        q = inter.read_query(inter.norm_read(queries)).view(2, 5, 3, 4)
        k = inter.read_key(inter.norm_tokens(tokens)).view(2, 16, 3, 4)
        expected = torch.einsum('bkhc,bnhc->bhkn', q, k) / 2
        expected = expected + inter.carry.view(1, 3, 1, 1) * previous
        torch.testing.assert_close(logits, expected)
        previous = logits


def test_queries_gather_the_values_they_attend_to(images):
    model = make_vit(num_queries=5, feedback=False, query_attention=False)
    randomise(model)
    inter = model.interaction
    tokens, queries = torch.randn(2, 16, 24), torch.randn(2, 5, 24)
    _, updated, logits = inter(tokens, queries)
    value = inter.read_value(inter.norm_tokens(tokens)).view(2, 16, 3, 4)
    read = torch.einsum('bhkn,bnhc->bkhc', logits.softmax(-1), value).flatten(2)
    torch.testing.assert_close(updated, queries + inter.read_out(read))


@pytest.mark.parametrize('part', ['carry', 'query_attention', 'feedback'])
def test_each_part_can_be_switched_off(part, images):
    def names(model):
        return {n for n, _ in model.named_parameters()}

    full, without = make_vit(num_queries=5), make_vit(num_queries=5, **{part: False})
    key = dict(carry='carry', query_attention='relation', feedback='feedback')[part]
    gone = names(full) - names(without)
    assert gone and all(key in n or (part == 'feedback' and 'gamma' in n) for n in gone)
    with without.interactions() as trace:
        without(images)
    assert len(trace.logits) == 3


def test_queries_do_not_see_padding():
    model = make_vit(num_queries=2)
    randomise(model)
    tokens, queries = torch.randn(2, 16, 24), torch.randn(2, 2, 24)
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[0, 8:] = False
    noisy = tokens.clone()
    noisy[0, 8:] += 5
    _, a, _ = model.interaction(tokens, queries, None, valid)
    _, b, _ = model.interaction(noisy, queries, None, valid)
    torch.testing.assert_close(a, b)


def test_image_shapes_mask_the_patches_whose_centre_is_padding():
    model = make_vit(num_queries=2)
    with model.interactions([(32, 20), (12, 32)]) as trace:
        model(torch.randn(2, 3, 32, 32))
    valid = trace.valid.view(2, 4, 4)
    # columns end at 8, 16, 24: the third column's centre, 20, is not inside 20
    assert valid[0].tolist() == [[True, True, False, False]] * 4
    # the second row's centre, 12, is not inside 12
    assert valid[1].tolist() == [[True] * 4] + [[False] * 4] * 3


def test_images_without_padding_need_no_mask():
    model = make_vit(num_queries=2)
    with model.interactions([(32, 32)]) as trace:
        model(torch.randn(1, 3, 32, 32))
    assert trace.valid is None


@pytest.mark.parametrize('feedback', [True, False])
@pytest.mark.parametrize('layers', [(0, 1, 2), (1,)])
@pytest.mark.parametrize('maps, queries', [(0, None), (None, 0), (-1, None), (-1, -1)])
def test_every_trainable_parameter_gets_a_gradient(
    feedback, layers, maps, queries, images
):
    """What DDP with find_unused_parameters=False asks for."""
    model = make_vit(num_queries=4, feedback=feedback, interaction_layers=layers)
    last = [i if i is None else range(len(layers))[i] for i in (maps, queries)]
    model.freeze_unreached(*last)
    with model.interactions() as trace:
        loss = model(images)[0].sum()
    if maps is not None:
        loss = loss + trace.logits[last[0]].softmax(-1).square().sum()
    if queries is not None:
        loss = loss + trace.queries[last[1]].square().sum()
    loss.backward()
    lost = [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ]
    surplus = [n for n, p in model.named_parameters()
               if not p.requires_grad and p.grad is not None]  # fmt: skip
    assert (lost, surplus) == ([], [])


def test_without_feedback_and_supervision_the_whole_interaction_is_frozen(images):
    model = make_vit(num_queries=4, feedback=False)
    frozen = model.freeze_unreached(None, None)
    assert 'queries' in frozen
    model(images)[0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_activation_checkpointing_changes_neither_output_nor_gradient(images):
    plain, frugal = make_vit(num_queries=4), make_vit(num_queries=4, with_cp=True)
    randomise(plain)
    frugal.load_state_dict(plain.state_dict())
    for model in (plain, frugal):
        with model.interactions() as trace:
            (
                model.train()(images)[0].sum() + trace.logits[-1].logsumexp(-1).sum()
            ).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), frugal.named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_logits_stay_in_float32_under_autocast(images):
    model = make_vit(num_queries=4)
    with torch.autocast('cpu', torch.bfloat16), model.interactions() as trace:
        model(images)
    assert {z.dtype for z in trace.logits} == {torch.float32}


def test_drop_path_is_active_in_training_only(images):
    model = make_vit(drop_path_rate=0.9)
    assert not torch.equal(model.train()(images)[0], model(images)[0])
    assert torch.equal(model.eval()(images)[0], model(images)[0])


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='deit-huge'), "'deit-huge' is not known; choose from"),
        (dict(arch=dict(embed_dims=8)), "lacks 'num_layers'"),
        (dict(global_layers=(5,)), r'global_layers=\(5,\): no block \[5\] among 3'),
        (dict(num_queries=2, interaction_layers=()), 'not a list of block indices'),
        (dict(num_queries=2, out_layers=(0,)), 'go beyond the last'),
        (dict(num_queries=2, interaction_heads=5), 'does not divide into 5 heads'),
    ],
)
def test_a_wrong_setting_is_named_with_its_choices(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_vit(**kwargs)


def test_deit_sizes_have_the_published_number_of_parameters():
    for arch, name in [('deit-tiny', 'deit_tiny_patch16_224')]:
        theirs = timm.create_model(name, pretrained=False)
        expected = sum(
            p.numel()
            for n, p in theirs.named_parameters()
            if not n.startswith(('head', 'norm.', 'cls_token'))
        )
        expected -= theirs.cls_token.numel()  # the position of the class token
        ours = InteractionViT(arch)
        assert sum(p.numel() for p in ours.parameters()) == expected
