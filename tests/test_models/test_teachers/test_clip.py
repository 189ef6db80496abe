from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lfi_mmdet.models.teachers import CLIPTeacher
from lfi_mmdet.models.teachers.clip import normalise_maps

from .tiny_open_clip import CLASSES, GRID, some_images

PRESENT = torch.tensor([[True, True, False], [False, True, True]])
EVERY = torch.ones(2, 3, dtype=torch.bool)
TEMPLATE = 'a photo of a {}.'
MODELS = ['tiny-clip', 'tiny-clip-scaled']


def teacher_of(file: str, **changes) -> CLIPTeacher:
    options = dict(model='tiny-clip', pretrained=file, class_names=CLASSES)
    return CLIPTeacher(**{**options, **changes})


@pytest.fixture
def sharp(saved):
    return saved('tiny-clip')


def last_block(network, x, mode):
    """The last block as each paper words it, with torch's own attention."""
    block = network.visual.transformer.resblocks[-1]
    if mode == 'last':
        return block(x)
    if mode == 'value':  # nothing but itself can be attended to
        alone = torch.full((x.shape[1],) * 2, float('-inf')).fill_diagonal_(0)
        return block(x, attn_mask=alone)
    attn = copy.deepcopy(block.attn)
    width = x.shape[-1]
    attn.in_proj_weight.data[width : 2 * width] = attn.in_proj_weight.data[:width]
    attn.in_proj_bias.data[width : 2 * width] = attn.in_proj_bias.data[:width]
    y = block.ln_1(x)
    if not isinstance(attn, nn.MultiheadAttention):
        attn.ln_k = attn.ln_q
        return block.ls_1(block.ln_attn(attn(y)))
    return block.ls_1(attn(y, y, y, need_weights=True)[0])


@torch.no_grad()
def expected(network, images, mode, layers=(2,), tau=0.07, templates=(TEMPLATE,)):
    """Maps (B, L, T, N) and projected patches (B, L, N, C), computed step by step."""
    import open_clip

    tokenizer = open_clip.get_tokenizer('tiny-clip')
    texts = sum(
        network.encode_text(tokenizer([t.format(c) for c in CLASSES]), normalize=True)
        for t in templates
    )
    visual = network.visual
    x = visual._embeds(images)
    maps, patches = [], []
    for index, block in enumerate(visual.transformer.resblocks):
        last = index == len(visual.transformer.resblocks) - 1
        x = last_block(network, x, mode) if last else block(x)
        if index in layers:
            projected = (visual.ln_post(x) @ visual.proj)[:, 1:]
            cosine = F.cosine_similarity(
                texts[None, :, None], projected[:, None], dim=-1
            )
            maps.append((cosine / tau).softmax(-1))
            patches.append(projected)
    return torch.stack(maps, 1), torch.stack(patches, 1)


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('mode', CLIPTeacher.MODES)
@pytest.mark.parametrize('layers', [(-1,), 'all', (0, 1)])
def test_maps_are_softmaxed_similarities_of_patches(saved, model, mode, layers):
    network, file = saved(model)
    images = some_images()
    teacher = teacher_of(file, model=model, mode=mode, layers=layers)
    targets = teacher.interact(images, EVERY)
    maps, patches = expected(network, images, mode, teacher.layers)
    assert targets.maps.shape == (2, len(teacher.layers), 3, *GRID)
    torch.testing.assert_close(targets.maps.flatten(-2), maps, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(targets.features, maps @ patches, atol=1e-5, rtol=1e-4)
    assert maps.std(-1).min() > 1e-3  # else anything would pass


def test_the_modes_differ_in_the_last_block_only(sharp):
    images = some_images()
    maps = [
        teacher_of(sharp[1], mode=mode, layers='all').interact(images, PRESENT).maps
        for mode in CLIPTeacher.MODES
    ]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        torch.testing.assert_close(maps[one][:, :2], maps[other][:, :2])
        assert (maps[one][:, 2] - maps[other][:, 2]).abs().max() > 1e-3


def test_maps_are_float32_distributions_also_under_autocast(sharp):
    images = some_images()
    for mode in CLIPTeacher.MODES:
        teacher = teacher_of(sharp[1], mode=mode, layers='all')
        plain = teacher.interact(images, PRESENT)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            cast = teacher.interact(images, PRESENT)
        for targets in (plain, cast):
            assert targets.maps.dtype == targets.features.dtype == torch.float32
            torch.testing.assert_close(targets.maps.sum((-2, -1)), torch.ones(2, 3, 3))
        torch.testing.assert_close(cast.maps, plain.maps, atol=0.02, rtol=0.3)
        assert not plain.maps.requires_grad and not plain.maps.is_inference()


def test_templates_are_averaged_as_unit_vectors(sharp):
    network, file = sharp
    templates = (TEMPLATE, 'a drawing of the {}', '{}')
    images = some_images()
    targets = teacher_of(file, template=templates).interact(images, EVERY)
    maps, _ = expected(network, images, 'value', templates=templates)
    torch.testing.assert_close(targets.maps.flatten(-2), maps, atol=1e-6, rtol=1e-4)
    assert (maps - expected(network, images, 'value')[0]).abs().max() > 1e-4


def test_temperature_sharpens_the_maps(sharp):
    network, file = sharp
    images = some_images()
    targets = teacher_of(file, temperature=0.01).interact(images, EVERY)
    maps, _ = expected(network, images, 'value', tau=0.01)
    torch.testing.assert_close(targets.maps.flatten(-2), maps, atol=1e-6, rtol=1e-4)


def test_the_input_may_be_oblong(sharp):
    teacher = teacher_of(sharp[1], image_size=(32, 48))
    targets = teacher.interact(some_images(2, 32, 48), PRESENT)
    assert targets.maps.shape == (2, 1, 3, 4, 6)


def test_what_the_teacher_says_about_itself(sharp):
    teacher = teacher_of(sharp[1], layers='all')
    assert (teacher.num_layers, teacher.feature_dims) == (3, 24)
    targets = teacher.interact(some_images(), PRESENT)
    assert targets.features.shape == (2, 3, 3, 24)
    assert targets.present is PRESENT


@pytest.mark.parametrize('mode', CLIPTeacher.MODES)
def test_blocks_with_other_attention_are_read_as_well(configs, mode):
    teacher = CLIPTeacher('tiny-clip-qknorm', mode=mode, class_names=CLASSES)
    torch.manual_seed(0)
    for name, value in teacher.network.visual.named_parameters():
        if 'ln_' in name:
            value.data.normal_(1.0, std=0.5)
    images = some_images()
    maps, _ = expected(teacher.network, images, mode)
    targets = teacher.interact(images, EVERY)
    torch.testing.assert_close(targets.maps.flatten(-2), maps, atol=1e-6, rtol=1e-4)


def test_absent_texts_have_uniform_maps_and_no_features(sharp):
    targets = teacher_of(sharp[1]).interact(some_images(), PRESENT)
    absent = ~PRESENT[:, None].expand(-1, 1, -1)
    assert (targets.maps[absent] == 1 / 16).all()
    assert (targets.features[absent] == 0).all()
    assert (targets.log_mass[absent] < -1e30).all()


def test_log_mass_is_the_log_of_the_sum_of_the_weights(sharp):
    network, file = sharp
    teacher, images = teacher_of(file, temperature=0.5), some_images()
    maps, patches = expected(network, images, 'value', tau=0.5)
    targets = teacher.interact(images, EVERY)
    cosine = F.cosine_similarity(
        teacher.texts['embeds'][None, None, :, None], patches[:, :, None], dim=-1
    )
    torch.testing.assert_close(targets.log_mass, (cosine / 0.5).logsumexp(-1))


def test_synonyms_are_averaged_with_the_name(sharp):
    network, file = sharp
    teacher = teacher_of(file, synonyms=dict(cat=['kitten']))
    embeds = F.normalize(
        network.encode_text(
            teacher.tokenizer(['a photo of a cat.', 'a photo of a kitten.'])
        ),
        dim=-1,
    )
    torch.testing.assert_close(
        teacher.texts['embeds'][0], F.normalize(embeds.sum(0), dim=-1)
    )
    with pytest.raises(ValueError, match='kat'):
        teacher_of(file, synonyms=dict(kat=['kitten']))


def test_the_teachers_own_score_says_which_texts_are_present(sharp):
    network, file = sharp
    images = some_images()
    teacher = teacher_of(file, present='teacher', presence=dict(top=1, threshold=0.0))
    targets = teacher.interact(images, None)
    image = network.encode_image(images, normalize=True)
    scores = (image @ teacher.texts['embeds'].T * network.logit_scale.exp()).softmax(-1)
    torch.testing.assert_close(targets.scores, scores, atol=1e-5, rtol=1e-4)
    assert targets.present.sum(1).tolist() == [1, 1]
    assert targets.present.gather(1, scores.argmax(1, keepdim=True)).all()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = teacher.interact(images, None).scores
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, scores, atol=0.05, rtol=0)
    strict = teacher_of(file, present='teacher', presence=dict(threshold=1.0))
    assert not strict.interact(images, None).present.any()


@pytest.mark.parametrize(
    'changes, complaint',
    [
        (dict(model='tiny-clip-resnet'), "'tiny-clip-resnet'.*ModifiedResNet"),
        (dict(model='tiny-coca'), 'use CoCaTeacher'),
        (dict(model='tiny-clip-oneblock'), "mode='value' needs two blocks"),
        (dict(reading='attention'), "reading='attention'.*similarity.*gradient"),
        (dict(present='some'), "present='some'.*teacher"),
        (dict(precision='float64'), "precision='float64'.*bfloat16"),
        (dict(texts='words'), "texts='words'.*captions"),
        (dict(max_free=3), "max_free=3 needs teacher.texts='captions'"),
        (dict(presence=dict(top=0)), 'presence.top=0 is less than 1'),
        (dict(presence=dict(threshold=2)), 'threshold=2 is not between'),
        (dict(mode='kk'), "mode='kk'.*value.*qq.*last"),
        (dict(temperature=0), 'temperature=0 must be above 0'),
        (dict(template=[]), 'empty list'),
        (dict(template=['a {}', 'b']), "template='b'"),
        (dict(layers=[3]), '3 blocks of the image tower'),
        (dict(image_size=33), 'no multiple of the patch size'),
    ],
)
def test_a_bad_option_is_named_with_its_choices(configs, changes, complaint):
    options = {'model': 'tiny-clip', **changes}
    with pytest.raises(ValueError, match=complaint):
        CLIPTeacher(**options)


def test_a_tokenizer_that_is_not_there_is_named(configs):
    with pytest.raises(FileNotFoundError, match="tokenizer='/none' is no folder"):
        CLIPTeacher('tiny-clip', tokenizer='/none')


@pytest.mark.parametrize('scale', [1.0, 1e-33, 1e-42])
def test_maps_sum_to_1_however_small_their_weights_are(scale):
    raw = torch.tensor([[1.0, 3.0, 0.0, 0.0]]) * scale
    expected = torch.tensor([[0.25, 0.75, 0.0, 0.0]])
    torch.testing.assert_close(normalise_maps(raw), expected, atol=1e-2, rtol=1e-2)
    uniform = torch.full((1, 4), 0.25)
    torch.testing.assert_close(normalise_maps(raw * 0), uniform)
