from __future__ import annotations

import pytest
import torch
from mmdet.structures import DetDataSample

from lfi_mmdet.models.teachers import CoCaTeacher, attention_capture, coca

from .tiny_open_clip import CLASSES, GRID, some_images

PROMPTS = [f'a photo of a {name}.' for name in CLASSES]
#: Tokens of the names: start, a, photo, of, a, then the name
SPANS = {'cat': [5], 'traffic light': [5, 6], 'zebra': [5]}
PRESENT = torch.tensor([[True, True, False], [False, True, True]])
MODELS = ['tiny-coca', 'tiny-coca-parallel', 'tiny-coca-cascade', 'tiny-coca-plain']


def weights_of(attn, query, key):
    """Maps as torch itself returns them, averaged over the heads."""
    return attn(query, key, key, need_weights=True, average_attn_weights=False)[1].mean(
        1
    )


@torch.no_grad()
def expected_maps(network, images, shift=0):
    """Step through the network with torch's own maps; (B, L, T, N) and (B, N, C)."""
    import open_clip

    visual = network.visual
    x = visual.transformer(visual._embeds(images))
    if visual.attn_pool is None:
        values = visual.ln_post(x)[:, 1:]
        keys, pooling = values, torch.eye(16).expand(len(images), -1, -1)
    else:
        contrastive = visual.attn_pool_contrastive is not None
        context = visual.attn_pool.ln_k(visual.ln_post(x) if contrastive else x)
        query = visual.attn_pool.ln_q(visual.attn_pool.query).expand(len(x), -1, -1)
        pooling = weights_of(visual.attn_pool.attn, query, context)[:, :, 1:]
        keys = visual.attn_pool(visual.ln_post(x) if contrastive else x)
        values = context[:, 1:]
        if not contrastive:
            keys, pooling = visual.ln_post(keys)[:, 1:], pooling[:, 1:]
    tokens = open_clip.get_tokenizer('tiny-coca')(PROMPTS)
    embeds = network.text(tokens)[1]
    decoder = network.text_decoder
    maps = torch.zeros(len(images), 3, len(CLASSES), 16)
    for image in range(len(images)):
        key = keys[image : image + 1]
        for text, name in enumerate(CLASSES):
            state = embeds[text : text + 1]
            rows = [position - shift for position in SPANS[name]]
            for layer in range(3):
                block, cross = decoder.resblocks[layer], decoder.cross_attn[layer]
                state = block(state, attn_mask=decoder.attn_mask)
                attention = weights_of(
                    cross.attn, cross.ln_1(state), cross.ln_1_kv(key)
                )[0, rows].mean(0)
                row = attention @ pooling[image]
                maps[image, layer, text] = row / row.sum()
                state = cross(state, k_x=key, v_x=key)
    return maps, values


@pytest.fixture
def sharp(saved):
    return saved('tiny-coca')


def teacher_of(file: str, **changes) -> CoCaTeacher:
    options = dict(model='tiny-coca', pretrained=file, class_names=CLASSES)
    return CoCaTeacher(**{**options, **changes})


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('token_row', ['reads', 'predicts'])
def test_maps_are_decoder_attention_traced_back_to_patches(saved, model, token_row):
    network, file = saved(model)
    images = some_images()
    maps, values = expected_maps(network, images, shift=token_row == 'predicts')
    targets = teacher_of(file, model=model, token_row=token_row).interact(
        images, PRESENT
    )
    assert targets.maps.shape == (2, 3, 3, *GRID)
    got = targets.maps.flatten(-2)
    where = PRESENT[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(got[where], maps[where], atol=1e-6, rtol=1e-4)
    # the test means something only if the maps are neither uniform nor all alike
    assert maps.std(-1).min() > 1e-3
    assert (maps[:, 0] - maps[:, 1]).abs().max() > 1e-2
    features = (maps @ values[:, None])[where]
    torch.testing.assert_close(targets.features[where], features, atol=1e-5, rtol=1e-4)


def test_reading_and_predicting_rows_give_different_maps(sharp):
    images = some_images()
    reads, predicts = (
        teacher_of(sharp[1], token_row=row).interact(images, PRESENT).maps
        for row in CoCaTeacher.TOKEN_ROWS
    )
    assert (reads - predicts).abs().max() > 1e-3


@pytest.mark.parametrize('token_row, shift', [('reads', 0), ('predicts', 1)])
def test_only_rows_of_the_class_name_are_used(sharp, token_row, shift):
    teacher = teacher_of(sharp[1], token_row=token_row)
    tokens = teacher.tokenizer(PROMPTS)
    rows, weights = teacher.texts['rows'] + shift, teacher.texts['weights']
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    for name, prompt, row, weight in zip(CLASSES, tokens, rows, weights):
        used = [int(prompt[index]) for index in row[weight > 0]]
        assert teacher.tokenizer.decode(used).strip() == name


def test_maps_are_float32_distributions_and_uniform_where_absent(sharp):
    targets = teacher_of(sharp[1]).interact(some_images(), PRESENT)
    assert targets.maps.dtype == targets.features.dtype == torch.float32
    torch.testing.assert_close(targets.maps.sum((-2, -1)), torch.ones(2, 3, 3))
    absent = ~PRESENT[:, None].expand(-1, 3, -1)
    assert (targets.maps[absent] == 1 / 16).all()
    assert (targets.features[absent] == 0).all()
    assert targets.present is PRESENT
    assert not targets.maps.requires_grad and not targets.maps.is_inference()


def test_an_image_without_texts_gets_finite_targets(sharp):
    targets = teacher_of(sharp[1]).interact(some_images(), torch.zeros_like(PRESENT))
    assert (targets.maps == 1 / 16).all() and (targets.features == 0).all()


def test_the_layers_that_are_asked_for_are_read_and_those_above_dropped(sharp):
    images = some_images()
    every = teacher_of(sharp[1]).interact(images, PRESENT)
    teacher = teacher_of(sharp[1], layers=[-2, 0])
    some = teacher.interact(images, PRESENT)
    assert (teacher.layers, teacher.num_layers) == ((0, 1), 2)
    assert len(teacher.network.text_decoder.resblocks) == 2
    torch.testing.assert_close(some.maps, every.maps[:, :2])
    torch.testing.assert_close(some.features, every.features[:, :2])


def test_many_pairs_in_turns_equal_all_at_once(sharp, monkeypatch):
    teacher = teacher_of(sharp[1])
    images = some_images()
    at_once = teacher.interact(images, PRESENT).maps
    monkeypatch.setattr(coca, 'PAIRS_PER_PASS', 3)
    torch.testing.assert_close(teacher.interact(images, PRESENT).maps, at_once)
    monkeypatch.setattr(coca, 'TEXTS_PER_PASS', 2)
    embeds = teacher.texts['embeds']
    teacher.set_class_names(CLASSES)
    torch.testing.assert_close(teacher.texts['embeds'], embeds)


@pytest.mark.parametrize('model', ['tiny-coca', 'tiny-coca-plain'])
def test_maps_survive_autocast(saved, model):
    _, file = saved(model)
    teacher, images = teacher_of(file, model=model), some_images()
    plain = teacher.interact(images, PRESENT)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = teacher.interact(images, PRESENT)
    assert cast.maps.dtype == cast.features.dtype == torch.float32
    torch.testing.assert_close(cast.maps.sum((-2, -1)), torch.ones(2, 3, 3))
    torch.testing.assert_close(cast.maps, plain.maps, atol=0.03, rtol=0.3)


def test_attention_that_all_goes_to_the_class_token_leaves_finite_maps(
    sharp, monkeypatch
):
    teacher = teacher_of(sharp[1])
    pooler = teacher.network.visual.attn_pool.attn
    recompute = attention_capture.AttentionRecord.weights

    def weights(record, rows=None):
        maps = recompute(record, rows)
        if record.module is pooler:
            maps = torch.zeros_like(maps).index_fill(-1, torch.tensor([0]), 1.0)
        return maps

    monkeypatch.setattr(attention_capture.AttentionRecord, 'weights', weights)
    maps = teacher.interact(some_images(), PRESENT).maps
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / 16))


def test_the_input_may_be_oblong(sharp):
    teacher = teacher_of(sharp[1], image_size=[32, 48])
    samples = [DetDataSample(metainfo=dict(img_shape=s)) for s in [(20, 30), (32, 24)]]
    images = teacher.view(torch.rand(2, 3, 32, 32) * 255, samples, None)
    assert images.shape == (2, 3, 32, 48)
    targets = teacher.interact(images, PRESENT)
    assert targets.maps.shape == (2, 3, 3, 4, 6)
    torch.testing.assert_close(targets.maps.sum((-2, -1)), torch.ones(2, 3, 3))


def test_maps_lie_as_the_image_does(sharp):
    teacher = teacher_of(sharp[1], image_size=[32, 48])
    teacher.network.visual.positional_embedding.data.zero_()
    image = torch.zeros(1, 3, 32, 48)
    image[:, :, 8:16, 40:48] = 3  # the patch in row 1, column 5
    maps = teacher.interact(image, torch.ones(1, 3, dtype=torch.bool)).maps.flatten(
        0, 2
    )
    others = torch.ones(4, 6, dtype=torch.bool)
    others[1, 5] = False
    # without positions, patches that look alike get the same attention
    for chart in maps:
        assert chart[others].max() - chart[others].min() < 1e-6
        assert (chart[1, 5] - chart[0, 0]).abs() > 1e-4


def test_what_the_teacher_says_about_itself(sharp):
    teacher = teacher_of(sharp[1])
    assert (teacher.num_layers, teacher.feature_dims) == (3, 48)
    targets = teacher.interact(some_images(), PRESENT)
    assert targets.features.shape == (2, 3, 3, 48)
    assert teacher.view.size == (32, 32)
    assert teacher.view.mean.flatten()[0] == pytest.approx(0.48145466)


@pytest.mark.parametrize(
    'changes, complaint',
    [
        (dict(token_row='writes'), "token_row='writes'.*reads.*predicts"),
        (dict(template='a photo'), r"template='a photo'.*\{\} exactly once"),
        (dict(template='{} or {}'), 'exactly once'),
        (dict(layers=[3]), '3 is out of range.*3 decoder layers'),
        (dict(layers=[0, -3]), 'twice'),
        (dict(layers=[]), "must be 'all' or a list"),
        (dict(layers='some'), "layers='some' must be 'all'"),
        (dict(present='maybe'), "present='maybe'"),
        (dict(class_names=['cat', ' ']), 'class 1 has an empty name'),
        (dict(template='two {}s'), "'cat' are not found.*joins them"),
        (
            dict(class_names=['bow (weapon)']),
            r"bow \(weapon\)' are not found.*put a sp",
        ),
        (dict(template='a ' * 20 + '{}'), "'cat' are not found.*cut at 16 tokens"),
        (dict(template='{}', token_row='predicts'), 'needs a word before'),
        (dict(image_size=36), r'image_size=\(36, 36\) is no multiple.*\(8, 8\)'),
    ],
)
def test_a_bad_option_is_named_with_its_choices(sharp, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        teacher_of(sharp[1], **changes)


def test_a_model_without_decoder_is_refused(configs):
    with pytest.raises(ValueError, match='CLIPTeacher takes this one'):
        CoCaTeacher('tiny-clip')
