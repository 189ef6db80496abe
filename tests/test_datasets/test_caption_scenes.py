"""Fresh scenes and captions: the same scene for the same index, and no labels."""

import pytest
import torch

from lfi_mmdet.datasets import CaptionScenes
from lfi_mmdet.models.teachers.caption_words import caption_words


def scenes(length=6, **choices):
    return CaptionScenes(length, size=48, **choices)


def test_a_scene_depends_on_nothing_but_seed_stream_and_index():
    first, again = scenes(), scenes(length=3)
    assert torch.equal(first[2]['inputs'], again[2]['inputs'])
    assert first[2]['caption'] == again[2]['caption']
    for other in (scenes(seed=1), scenes(split='held-out')):
        assert not torch.equal(first[2]['inputs'], other[2]['inputs'])


def test_an_item_is_an_image_and_a_caption_that_names_a_class_and_nothing_else():
    data = scenes()
    for item in (data[i] for i in range(len(data))):
        assert set(item) == {'inputs', 'caption'}
        assert item['inputs'].shape == (3, 48, 48)
        assert item['inputs'].dtype == torch.uint8
        assert caption_words([item['caption']], data.metainfo['classes'])


def test_domains_take_turns():
    mixed = scenes(domains=('photo', 'line'))
    assert torch.equal(mixed[0]['inputs'], scenes()[0]['inputs'])
    assert torch.equal(mixed[1]['inputs'], scenes(domains=('line',))[1]['inputs'])


@pytest.mark.parametrize(
    ('choices', 'words'),
    [
        (dict(length=0), 'dataset.length=0'),
        (dict(domains=()), 'dataset.domains='),
        (dict(domains='photo'), 'dataset.domains='),
        (dict(domains=('oil',)), 'oil'),
    ],
)
def test_bad_choices_are_named(choices, words):
    with pytest.raises(ValueError, match=words):
        scenes(**choices)


def test_there_is_no_scene_behind_the_last():
    with pytest.raises(IndexError):
        scenes(length=2)[2]
