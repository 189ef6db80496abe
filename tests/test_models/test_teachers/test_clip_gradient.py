"""Gradient maps of CLIP, EVA-CLIP and SigLIP, checked by finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lfi_mmdet.models.teachers import CLIPTeacher, SigLIPTeacher
from lfi_mmdet.models.teachers.attention_gradient import explicit_attention

from .tiny_open_clip import CLASSES, GRID, some_images

PRESENT = torch.tensor([[True, True, False], [False, True, True]])


def teacher_of(name, **changes):
    kind = SigLIPTeacher if name == 'tiny-sigmoid' else CLIPTeacher
    options = dict(model=name, class_names=CLASSES, reading='gradient', layers='all')
    teacher = kind(**{**options, **changes})
    torch.manual_seed(1)
    for key, value in teacher.network.visual.named_parameters():
        if value.ndim > 1 and 'pos_embed' not in key:
            value.data.normal_(std=1.5 * value.shape[-1] ** -0.5)
    return teacher


def score_of(teacher, images, text):
    image = F.normalize(teacher.network.encode_image(images), dim=-1)
    return image @ teacher.texts['embeds'][text]


@pytest.mark.parametrize('name', ['tiny-clip', 'tiny-eva', 'tiny-sigmoid'])
def test_maps_weight_attention_by_what_it_does_to_the_similarity(configs, name):
    teacher, images = teacher_of(name), some_images()
    targets = teacher.interact(images, PRESENT)
    assert targets.maps.shape == (2, 3, 3, *GRID)
    prefix = 0 if name == 'tiny-sigmoid' else 1
    layer, image, text = 1, 0, 1
    module = teacher.tower.attentions[layer]
    with explicit_attention([module]) as (record,):
        score = score_of(teacher, images[:1], text).sum()
        (grad,) = torch.autograd.grad(score, record.probs)
    raw = (record.probs.detach() * grad).clamp(min=0).mean(1)[0]
    raw = raw[0, prefix:] if prefix else raw.mean(0)
    got = targets.maps[image, layer, text].flatten()
    torch.testing.assert_close(got, raw / raw.sum(), atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(
        targets.log_mass[image, layer, text], raw.sum().log(), atol=1e-2, rtol=1e-2
    )
    assert targets.maps.flatten(-2)[PRESENT[:, None].expand(-1, 3, -1)].std(
        -1
    ).min() > (1e-4)


def test_maps_of_different_texts_differ(configs):
    targets = teacher_of('tiny-clip').interact(some_images(), PRESENT)
    assert (targets.maps[0, :, 0] - targets.maps[0, :, 1]).abs().amax() > 1e-3


def test_gradients_are_taken_within_a_batch_of_the_student_too(configs):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    teacher = teacher_of('tiny-clip')
    sample = DetDataSample(metainfo=dict(img_shape=(32, 32)))
    sample.gt_instances = InstanceData(labels=torch.tensor([0, 2]))
    pixels = torch.rand(1, 3, 32, 32) * 255
    before = teacher.weights_hash()
    with torch.no_grad():
        targets = teacher(pixels, [sample], None)
        images = teacher.view(pixels, [sample], None)
    assert not targets.maps.requires_grad and not targets.maps.is_inference()
    expected = teacher.interact(images, torch.tensor([[True, False, True]])).maps
    torch.testing.assert_close(targets.maps, expected[:, :, [0, 2]])
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert teacher.weights_hash() == before
