from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lfi_mmdet.models.teachers import CoCaTeacher
from lfi_mmdet.models.teachers.caption_words import CaptionWord

from .test_coca_readings import by_hand, step_through, teacher_of
from .tiny_open_clip import some_images


def test_maps_of_several_templates_and_synonyms_are_averaged(saved):
    images, present = some_images(), torch.ones(2, 3, dtype=torch.bool)
    options = dict(class_names=['cat', 'traffic light', 'zebra'])
    teacher = teacher_of(
        saved,
        template=['a photo of a {}.', 'one {} here'],
        synonyms={'cat': ['kitten']},
        **options,
    )
    got = teacher.interact(images, present)
    parts = [
        teacher_of(saved, template=template, **options).interact(images, present)
        for template in teacher.templates
    ]
    both = (parts[0].maps + parts[1].maps) / 2
    torch.testing.assert_close(got.maps[:, :, 1:], both[:, :, 1:])
    kittens = [
        teacher_of(saved, template=template, class_names=['kitten']).interact(
            images, present[:, :1]
        )
        for template in teacher.templates
    ]
    four = [part.maps[:, :, 0] for part in (*parts, *kittens)]
    torch.testing.assert_close(got.maps[:, :, 0], sum(four) / 4)


def test_embeddings_of_several_templates_are_averaged_for_similarities(saved):
    templates = ['a photo of a {}.', 'one {} here']
    options = dict(reading='similarity', layers=[-1])
    teacher = teacher_of(saved, template=templates, **options)
    parts = [
        teacher_of(saved, template=t, **options).texts['latents'] for t in templates
    ]
    mean = F.normalize(parts[0] + parts[1], dim=-1)
    torch.testing.assert_close(teacher.texts['latents'], mean)


def word(caption: str, text: str, row: int) -> CaptionWord:
    start = caption.index(text)
    return CaptionWord(caption, start, start + len(text), text, None, row)


@pytest.mark.parametrize('reading', ['attention', 'gradient'])
def test_words_of_a_caption_are_read_within_it(saved, reading):
    network, _ = saved('tiny-coca')
    caption = 'two dogs near a traffic light'
    teacher = teacher_of(saved, reading=reading, texts='captions', max_free=1)
    words = [
        [word(caption, 'traffic light', 1), word(caption, 'dogs', 3)],
        [],
    ]
    present = torch.zeros(2, 4, dtype=torch.bool)
    present[0, [1, 3]] = True
    images = some_images()
    got = teacher.interact_words(images, words, present).maps[0].flatten(-2)
    for row, span in ((1, [5, 6]), (3, [2])):
        if reading == 'gradient':
            raw = by_hand(network, images[0], caption, span).mean(1)
        else:
            pooling, attended, *_ = step_through(network, images[0], caption)
            rows = torch.stack([a.probs[0, :, span].mean((0, 1)) for a in attended])
            raw = rows @ pooling.probs[0].mean(0)[1:, 1:]
        raw = raw / raw.sum(-1, keepdim=True)
        torch.testing.assert_close(got[:, row], raw, atol=1e-5, rtol=1e-3)


def test_images_without_caption_words_get_finite_targets(saved):
    for reading in CoCaTeacher.READINGS:
        teacher = teacher_of(saved, reading=reading, texts='captions')
        none = torch.zeros(2, 3, dtype=torch.bool)
        targets = teacher.interact_words(some_images(), [[], []], none)
        assert (targets.maps == 1 / 16).all() and (targets.features == 0).all()


def test_a_caption_that_is_too_long_loses_its_beginning(saved):
    teacher = teacher_of(saved, texts='captions')
    caption = 'on a long and winding road that leads to your very door a zebra and two'
    caption += ' cats'
    texts = (caption, caption[caption.index('and winding') :])
    cut, fitting = (
        teacher.encode_prompts([teacher._prompt_of(word(text, 'cats', 0))])
        for text in texts
    )
    # of 16 tokens, the first is the start and the last the end
    assert cut['rows'].tolist() == fitting['rows'].tolist() == [[14]]
    torch.testing.assert_close(cut['embeds'], fitting['embeds'])
