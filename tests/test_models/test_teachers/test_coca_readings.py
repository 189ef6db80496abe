from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from lfi_mmdet.models.teachers import CoCaTeacher, coca

from .tiny_open_clip import CLASSES, GRID, some_images

MODELS = ['tiny-coca', 'tiny-coca-parallel', 'tiny-coca-cascade', 'tiny-coca-plain']
PRESENT = torch.tensor([[True, True, False], [False, True, True]])
#: Tokens of the names: start, a, photo, of, a, then the name
SPANS = [[5], [5, 6], [5]]


def teacher_of(saved, model: str = 'tiny-coca', **changes) -> CoCaTeacher:
    options = dict(model=model, pretrained=saved(model)[1], class_names=CLASSES)
    return CoCaTeacher(**{**options, **changes})


class Attended:
    """One attention module, step by step, its maps a leaf or a part of the graph."""

    def __init__(self, attn, query, key):
        weights = attn.in_proj_weight
        if weights is None:
            weights = attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight
        else:
            weights = weights.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, key), weights, attn.in_proj_bias.chunk(3))
        )
        self.probs = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        if not self.probs.requires_grad:
            self.probs.requires_grad_()
        self.out = attn.out_proj((self.probs @ v).transpose(1, 2).flatten(2))


def step_through(network, image, text: str, pool: bool = True):
    """A frozen network by hand, for one image and one text.

    Returns the pooler's attention (or None), that of the decoder by layer, the
    log-probabilities (S, V) and the tokens (S,).
    """
    import open_clip

    network.requires_grad_(False)
    visual, decoder = network.visual, network.text_decoder
    x = visual.transformer(visual._embeds(image[None]))
    pooler = visual.attn_pool
    if pooler is None:
        pooling, embeds = None, visual.ln_post(x)[:, 1:]
    else:
        own = visual.attn_pool_contrastive is not None
        context = pooler.ln_k(visual.ln_post(x) if own else x)
        pooling = Attended(pooler.attn, pooler.ln_q(pooler.query)[None], context)
        embeds = pooling.out if own else visual.ln_post(pooling.out)[:, 1:]
    tokens = open_clip.get_tokenizer('tiny-coca')([text])
    network.text.output_tokens = True
    state, attended = network.text(tokens)[1], []
    for block, cross in zip(decoder.resblocks, decoder.cross_attn):
        length = state.shape[1]
        state = block(state, attn_mask=decoder.attn_mask[:length, :length])
        step = Attended(cross.attn, cross.ln_1(state), cross.ln_1_kv(embeds))
        attended.append(step)
        state = state + step.out
        state = state + cross.mlp(cross.ln_2(state))
    logits = decoder.ln_final(state) @ decoder.text_projection
    return pooling, attended, logits[0].log_softmax(-1), tokens[0]


def by_hand(network, image, text: str, span: list[int]):
    """Gradient-weighted maps before they are normalised, (L, heads, N)."""
    pooling, attended, logs, tokens = step_through(network, image, text)
    score = sum(logs[position - 1, tokens[position]] for position in span)
    steps = attended if pooling is None else [pooling, *attended]
    grads = torch.autograd.grad(score, [step.probs for step in steps])
    weighted = [
        (step.probs * grad).clamp(min=0)[0].detach() for step, grad in zip(steps, grads)
    ]
    mixing = torch.eye(16)
    if pooling is not None:
        mixing = weighted.pop(0).mean(0)[-attended[0].probs.shape[-1] :, 1:]
    rows = [position - 1 for position in span]
    return torch.stack([maps[:, rows].mean(1) @ mixing for maps in weighted])


@pytest.mark.parametrize('model', MODELS)
def test_gradient_maps_are_attention_weighted_by_its_gradient(saved, model):
    network, _ = saved(model)
    images = some_images()
    teacher = teacher_of(saved, model, reading='gradient')
    assert teacher.token_row == 'predicts'
    got = teacher.interact(images, PRESENT)
    assert got.maps.shape == (2, 3, 3, *GRID) and not got.maps.requires_grad
    for image, text in PRESENT.nonzero().tolist():
        prompt = f'a photo of a {CLASSES[text]}.'
        raw = by_hand(network, images[image], prompt, SPANS[text]).mean(1)
        assert raw.max() > 0
        maps = raw / raw.sum(-1, keepdim=True)
        torch.testing.assert_close(
            got.maps[image, :, text].flatten(-2), maps, atol=1e-5, rtol=1e-3
        )
        torch.testing.assert_close(
            got.log_mass[image, :, text], raw.sum(-1).log(), atol=1e-3, rtol=1e-3
        )
    attention = teacher_of(saved, model, token_row='predicts').interact(images, PRESENT)
    assert (attention.maps - got.maps).abs().max() > 1e-2
    assert attention.features.shape == got.features.shape


def test_heads_that_are_kept_are_layers_of_their_own(saved):
    network, _ = saved('tiny-coca')
    images = some_images()
    for reading in ('attention', 'gradient'):
        teacher = teacher_of(saved, heads='keep', layers=[0, 2], reading=reading)
        assert teacher.num_layers == 8
        assert teacher.layer_names == [f'{m}.h{h}' for m in (0, 2) for h in range(4)]
        maps = teacher.interact(images, PRESENT).maps[0, :, 0].flatten(-2)
        if reading == 'gradient':
            raw = by_hand(network, images[0], 'a photo of a cat.', [5])
        else:
            pooling, attended, *_ = step_through(
                network, images[0], 'a photo of a cat.'
            )
            mixing = pooling.probs[0].mean(0)[1:, 1:]
            raw = torch.stack([a.probs[0, :, 5] for a in attended]) @ mixing
        raw = raw[[0, 2]].flatten(0, 1)
        torch.testing.assert_close(
            maps, raw / raw.sum(-1, keepdim=True), atol=1e-5, rtol=1e-3
        )


def test_some_heads_may_be_left_out(saved):
    images = some_images()
    kept = teacher_of(saved, heads='keep').interact(images, PRESENT)
    some = teacher_of(saved, heads=[1, 3]).interact(images, PRESENT)
    assert some.maps.shape[1] == 3
    # maps of the same layer differ in their mass, so averages are weighted by it
    mass = kept.log_mass.exp().unflatten(1, (3, 4))[:, :, [1, 3]]
    maps = kept.maps.unflatten(1, (3, 4))[:, :, [1, 3]]
    mixed = (maps * mass[..., None, None]).sum(2) / mass.sum(2)[..., None, None]
    where = PRESENT[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(some.maps[where], mixed[where])


def test_log_mass_is_what_attention_left_to_the_patches(saved):
    network, _ = saved('tiny-coca')
    images = some_images()
    got = teacher_of(saved).interact(images, PRESENT).log_mass
    pooling, attended, *_ = step_through(network, images[0], 'a photo of a cat.')
    mixing = pooling.probs[0].mean(0)[1:, 1:]
    mass = torch.stack([(a.probs[0, :, 5].mean(0) @ mixing).sum() for a in attended])
    torch.testing.assert_close(got[0, :, 0], mass.log(), atol=1e-5, rtol=1e-5)
    assert (mass < 1).all()


@pytest.mark.parametrize('model', MODELS)
def test_similarities_are_cosines_of_patches_that_pass_pooling_alone(saved, model):
    import open_clip

    network, _ = saved(model)
    visual, images = network.visual, some_images()
    layers, temperature = [0, 2], 0.2
    teacher = teacher_of(
        saved, model, reading='similarity', layers=layers, temperature=temperature
    )
    got = teacher.interact(images, PRESENT)
    assert teacher.network.text_decoder is None and teacher.layer_names == ['0', '2']
    assert got.features.shape == (2, 2, 3, teacher.feature_dims)
    tokens = open_clip.get_tokenizer(model)([f'a photo of a {n}.' for n in CLASSES])
    with torch.no_grad():
        latents = F.normalize(network.encode_text(tokens), dim=-1)
        x = visual._embeds(images)
        for index, block in enumerate(visual.transformer.resblocks):
            x = block(x)
            if index not in layers:
                continue
            # a batch of patches, each a sequence of its own
            alone = x[:, 1:].flatten(0, 1)[:, None]
            if visual.attn_pool is None:
                pooled = visual.ln_post(alone)[:, 0]
            else:
                pooled = visual._pool(alone)[0].reshape(32, -1)
            patches = (pooled @ visual.proj).view(2, 16, -1)
            cosines = F.normalize(patches, dim=-1) @ latents.T
            maps = (cosines / temperature).softmax(1).transpose(1, 2)
            layer = layers.index(index)
            found = got.maps[:, layer].flatten(-2)[PRESENT]
            torch.testing.assert_close(found, maps[PRESENT], atol=1e-5, rtol=1e-4)
            features = (maps @ patches)[PRESENT]
            torch.testing.assert_close(
                got.features[:, layer][PRESENT], features, atol=1e-5, rtol=1e-3
            )
            mass = (cosines / temperature).logsumexp(1)[PRESENT]
            torch.testing.assert_close(
                got.log_mass[:, layer][PRESENT], mass, atol=1e-4, rtol=1e-4
            )
    assert (maps[:, 0] - maps[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize('reading', ['attention', 'similarity'])
@pytest.mark.parametrize('model', MODELS)
def test_scores_are_a_softmax_over_the_classes_with_the_logit_scale(
    saved, model, reading
):
    import open_clip

    network, _ = saved(model)
    templates = ['a photo of a {}.', 'one {} here']
    teacher = teacher_of(
        saved,
        model,
        reading=reading,
        template=templates,
        present='teacher',
        presence=dict(threshold=0.3, top=2),
    )
    images, tokenizer = some_images(), open_clip.get_tokenizer(model)
    network.visual.output_tokens = network.text.output_tokens = True
    with torch.no_grad():
        classes = [
            F.normalize(
                network.encode_text(
                    tokenizer([t.format(name) for t in templates]), normalize=True
                ).mean(0),
                dim=0,
            )
            for name in CLASSES
        ]
        latents = F.normalize(network.visual(images)[0].reshape(2, -1), dim=-1)
        logits = latents @ torch.stack(classes).T * network.logit_scale.exp()
    got = teacher.interact(images, None)
    torch.testing.assert_close(got.scores, logits.softmax(-1), atol=1e-5, rtol=1e-4)
    assert got.present.equal(teacher.presence(got.scores))
    assert teacher_of(saved, model).interact(images, PRESENT).scores is None


@pytest.mark.parametrize('guard', [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_the_caller_has_switched_off(saved, guard):
    teacher, images = teacher_of(saved, reading='gradient'), some_images()
    expected = teacher.interact(images, PRESENT).maps
    with guard():
        got = teacher.interact(images * 1, PRESENT).maps
    torch.testing.assert_close(got, expected)


def test_many_pairs_with_gradients_in_turns_equal_all_at_once(saved, monkeypatch):
    teacher, images = teacher_of(saved, reading='gradient'), some_images()
    at_once = teacher.interact(images, PRESENT)
    monkeypatch.setattr(coca, 'GRADIENT_PAIRS_PER_PASS', 3)
    in_turns = teacher.interact(images, PRESENT)
    torch.testing.assert_close(in_turns.maps, at_once.maps, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize('reading', CoCaTeacher.READINGS)
@pytest.mark.parametrize('model', ['tiny-coca', 'tiny-coca-parallel'])
def test_half_precision_and_autocast_give_float32_maps_like_the_exact_ones(
    saved, model, reading
):
    images = some_images()
    exact = teacher_of(saved, model, reading=reading).interact(images, PRESENT)
    low = teacher_of(saved, model, reading=reading, precision='bfloat16')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = teacher_of(saved, model, reading=reading).interact(images, PRESENT)
    for targets in (low.interact(images, PRESENT), cast):
        assert targets.maps.dtype == targets.features.dtype == torch.float32
        torch.testing.assert_close(
            targets.maps.sum((-2, -1)), torch.ones_like(targets.log_mass)
        )
        error = (targets.maps - exact.maps).abs().mean() / exact.maps.std()
        assert error < 0.25


@pytest.mark.parametrize('reading', CoCaTeacher.READINGS)
@pytest.mark.parametrize('model', MODELS)
def test_nothing_waits_for_the_device(saved, monkeypatch, model, reading):
    teacher = teacher_of(saved, model, reading=reading, heads='mean')
    teacher.wants_scores = True
    # a device without values (and without autocast): whatever asks for one fails
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())
    teacher.network.to('meta')
    targets = teacher.interact(some_images().to('meta'), PRESENT)
    assert targets.maps.is_meta and targets.scores.is_meta
    with pytest.raises(RuntimeError):
        targets.maps.nonzero()


@pytest.mark.parametrize(
    'changes, complaint',
    [
        (dict(reading='rollout'), "reading='rollout'.*attention.*similarity"),
        (dict(heads=[4]), r'heads=\[4\].*0 to 3'),
        (dict(heads='max'), "heads='max'"),
        (dict(reading='similarity', heads='keep'), "heads='keep' does not go with"),
        (dict(reading='gradient', token_row='reads'), "choose 'predicts'"),
        (dict(reading='similarity', layers=[3]), '3 is out of range.*3 blocks'),
        (dict(temperature=0), 'temperature=0 must be above 0'),
        (dict(template=[]), 'template is an empty list'),
    ],
)
def test_a_bad_option_is_named_with_its_choices(saved, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        teacher_of(saved, **changes)
