"""Dense tokens: what the competitors of LFI are taught with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample

from lfi_mmdet.models.teachers.tiles import stitch_tokens

from .tiny_open_clip import CLASSES, GRID, some_images

EVERY = torch.ones(2, 3, dtype=torch.bool)
ALL = ['tiny-clip', 'tiny-eva', 'tiny-coca', 'tiny-coca-parallel', 'tiny-coca-cascade',
       'tiny-coca-plain']  # fmt: skip


def teacher_of(name, file, **changes):
    kind = 'CoCaTeacher' if 'coca' in name else 'CLIPTeacher'
    cfg = dict(type=kind, model=name, pretrained=file, class_names=CLASSES)
    return MODELS.build({**cfg, **changes})


@torch.no_grad()
def asked(teacher, tokens, images=None):
    teacher.wants_tokens = tokens
    return teacher.interact(some_images() if images is None else images, EVERY)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('kind', ['tower', 'joint'])
def test_tokens_have_the_width_the_teacher_states_and_the_grid_of_the_maps(
    saved, name, kind
):
    teacher = teacher_of(name, saved(name)[1])
    found = asked(teacher, kind)
    assert found.tokens.shape == (2, 1, *GRID, teacher.token_dims[kind])
    assert found.tokens.dtype == torch.float32
    assert (found.class_embeds is not None) == (kind == 'joint')
    assert asked(teacher, None).tokens is None


@pytest.mark.parametrize('name', ['tiny-coca', 'tiny-coca-plain'])
def test_cocas_tokens_are_those_of_the_last_block_of_its_image_tower(saved, name):
    network, file = saved(name)
    found = asked(teacher_of(name, file), 'tower').tokens
    with torch.no_grad():
        visual = network.visual
        patches = visual.transformer(visual._embeds(some_images()))[:, 1:]
    torch.testing.assert_close(found[:, 0].flatten(1, 2), patches, atol=1e-5, rtol=1e-5)


def test_clips_tokens_are_those_its_maps_are_made_of(saved):
    network, file = saved('tiny-clip')
    teacher = teacher_of('tiny-clip', file, layers=(0, 2), mode='last')
    tower, joint = asked(teacher, 'tower'), asked(teacher, 'joint')
    with torch.no_grad():
        visual = network.visual
        x, own = visual._embeds(some_images()), []
        for block in visual.transformer.resblocks:
            x = block(x)
            own.append(x[:, 1:])
        projected = visual.ln_post(own[2]) @ visual.proj
    for layer, block in enumerate((0, 2)):
        torch.testing.assert_close(
            tower.tokens[:, layer].flatten(1, 2), own[block], atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(
        joint.tokens[:, 1].flatten(1, 2), projected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    'name, reading', [('tiny-clip', None), ('tiny-coca', 'similarity')]
)
def test_similarity_maps_follow_from_joint_tokens_and_classes(saved, name, reading):
    teacher = teacher_of(
        name, saved(name)[1], temperature=0.05, reading=reading, layers=(0, 2)
    )
    found = asked(teacher, 'joint')
    cosines = F.normalize(found.tokens, dim=-1) @ found.class_embeds.T
    maps = (cosines / 0.05).flatten(2, 3).softmax(2).transpose(2, 3)
    torch.testing.assert_close(found.maps.flatten(3), maps, atol=1e-5, rtol=1e-4)


def test_classes_of_several_prompts_are_averaged_also_where_maps_are(saved):
    teacher = teacher_of(
        'tiny-coca', saved('tiny-coca')[1], template=['a {}.', 'the {}.']
    )
    embeds = asked(teacher, 'joint').class_embeds
    assert embeds.shape == (3, 32)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))


@pytest.fixture
def photos():
    samples = [
        DetDataSample(metainfo=dict(img_shape=shape)) for shape in [(40, 64), (48, 50)]
    ]
    return 128 + 60 * torch.randn(2, 3, 48, 64), samples, DetDataPreprocessor()


def test_tokens_come_out_of_a_call_fit_for_a_loss(saved, photos):
    teacher = teacher_of('tiny-clip', saved('tiny-clip')[1], present='all')
    teacher.wants_tokens = 'joint'
    for compact in (True, False):
        found = teacher(*photos, compact=compact)
        assert found.tokens.shape == (2, 1, *GRID, 24)
        assert not found.tokens.is_inference()
        assert found.class_embeds.shape == (3, 24)


@pytest.mark.parametrize('overlap', [0, 8])
def test_tokens_of_tiles_lie_side_by_side(saved, photos, overlap):
    teacher = teacher_of(
        'tiny-clip', saved('tiny-clip')[1], present='teacher', teacher_view='tiles',
        tiles=(2, 3), overlap=overlap,
    )  # fmt: skip
    teacher.wants_tokens = 'tower'
    found = teacher(*photos)
    rows, columns = 2 * 4 - overlap // 8, 3 * 4 - 2 * (overlap // 8)
    assert found.tokens.shape[2:4] == found.maps.shape[3:] == (rows, columns)
    inputs = teacher.view(*photos)
    tiles = asked(teacher, 'tower', inputs[:2]).tokens
    inner = slice(0, 4 - overlap // 8)  # what no other tile overlaps
    torch.testing.assert_close(
        found.tokens[0, 0, inner, inner], tiles[0, 0, inner, inner]
    )
    if overlap:
        mean = (tiles[0, 0, :3, 3] + tiles[1, 0, :3, 0]) / 2
        torch.testing.assert_close(found.tokens[0, 0, :3, 3], mean)


def test_constant_tokens_stay_constant_where_tiles_overlap():
    tokens = torch.full((2 * 4, 1, 4, 4, 5), 3.0)
    found = stitch_tokens(tokens, (2, 2), (2, 1))
    torch.testing.assert_close(found, torch.full((2, 1, 6, 7, 5), 3.0))


def test_further_texts_are_no_classes_that_a_region_can_have(saved):
    file = saved('tiny-coca')[1]
    plain = asked(teacher_of('tiny-coca', file), 'joint').class_embeds
    teacher = teacher_of('tiny-coca', file, more_texts=[CLASSES[0] * 2], present='all')
    teacher.wants_tokens = 'joint'
    found = teacher.interact(some_images(), torch.ones(2, 4, dtype=torch.bool))
    assert found.maps.shape[2] == 4
    torch.testing.assert_close(found.class_embeds, plain)
