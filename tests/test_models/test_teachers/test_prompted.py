"""What every teacher that is asked in words does, whatever network answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from lfi_mmdet.models.teachers import prompted
from lfi_mmdet.models.teachers.prompted import PromptTeacher, Reading

CLASSES = ('cat', 'dog', 'bird')


class LetterTeacher(PromptTeacher):
    """A prompt is its number of letters; a patch is like it by its brightness."""

    grid_size = (2, 2)
    num_layers = 1

    def __init__(self, named=CLASSES, **options):
        super().__init__(view=dict(size=4), **options)
        self.freeze(nn.Linear(1, 1))
        self.set_class_names(named)

    def encode_prompts(self, prompts):
        return dict(letters=torch.tensor([float(len(p.text)) for p in prompts]))

    def encode_images(self, images):
        return F.avg_pool2d(images.mean(1), 2).flatten(1)

    def read(self, images, prompts, pairs):
        logits = images[pairs[0]] * prompts['letters'][pairs[1]][:, None]
        logits = logits[:, None]
        return Reading(
            maps=logits.softmax(-1),
            log_mass=logits.logsumexp(-1),
            features=(logits.softmax(-1) * images[pairs[0], None])[..., :3],
        )

    def score(self, images, prompts):
        letters = prompts['letters'].expand(len(images), -1)
        return (letters / 100).to(torch.bfloat16) if self.wants_scores else None


def sample_of(labels, captions=None):
    sample = DetDataSample(metainfo=dict(img_shape=(8, 8), img_path='photo.jpg'))
    sample.gt_instances = InstanceData(labels=torch.tensor(labels).long())
    if captions is not None:
        sample.set_metainfo(dict(captions=captions))
    return sample


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return 255 * torch.rand(2, 3, 8, 8, generator=generator)


def test_maps_masses_and_features_of_a_class_are_averaged_over_its_prompts(pixels):
    batch = [sample_of([0, 2]), sample_of([0])]
    one, other = (
        LetterTeacher(template=t)(pixels, batch, None, compact=False)
        for t in ('a {}', 'a photo of the {}')
    )
    both = LetterTeacher(template=['a {}', 'a photo of the {}'])
    found = both(pixels, batch, None, compact=False)
    for name in ('maps', 'features', 'log_mass'):
        mean = (getattr(one, name) + getattr(other, name)) / 2
        there = found.present[:, None]
        torch.testing.assert_close(getattr(found, name)[there], mean[there])
    absent = ~found.present[:, None]
    assert (found.maps[absent] == 1 / 4).all() and not found.features[absent].any()
    assert (found.log_mass[absent] < -1e30).all()


def test_the_score_of_a_class_is_that_of_its_best_prompt(pixels):
    teacher = LetterTeacher(
        template=['a {}', 'the photo of a {}', '{}'],
        synonyms=dict(dog=['good old hound']),
        present='teacher',
        presence=dict(top=1),
    )
    found = teacher(pixels, [sample_of([])] * 2, None)
    assert found.scores.dtype == torch.float32
    letters = torch.tensor([18.0, 29.0, 19.0])  # 'the photo of a ' is 15 long
    torch.testing.assert_close(
        found.scores, (letters / 100).expand(2, -1), atol=1e-3, rtol=0
    )
    assert found.present.tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize('rule', ['ground_truth', 'all'])
def test_a_class_is_present_if_a_caption_names_it_and_the_rule_agrees(pixels, rule):
    teacher = LetterTeacher(texts='captions', max_free=1, present=rule)
    batch = [
        sample_of([0, 2], ['A cat and a dog on the grass']),
        sample_of([], ['Nothing']),
    ]
    found = teacher(pixels, batch, None, compact=False)
    dog = rule == 'all'
    assert found.present[0].tolist() == [True, dog, False, True]
    assert not found.present[1].any()
    absent = ~found.present[:, None]
    assert (found.maps[absent] == 1 / 4).all()
    assert found.maps[0, 0, 0].std() > 1e-3


def test_words_of_captions_stay_with_their_image_in_tiles(pixels):
    options = dict(teacher_view='tiles', tiles=(1, 2))
    teacher = LetterTeacher(texts='captions', present='all', **options)
    batch = [sample_of([], ['a cat and a bird']), sample_of([], ['some dogs'])]
    found = teacher(pixels, batch, None, compact=False)
    assert found.present.tolist() == [[True, False, True], [False, True, False]]
    for index, sample in enumerate(batch):
        alone = teacher(pixels[index : index + 1], [sample], None, compact=False)
        torch.testing.assert_close(found.maps[index], alone.maps[0])
    assert found.maps.shape == (2, 1, 3, 2, 4)


@pytest.mark.parametrize(
    'options, warned',
    [
        (dict(teacher_view='tiles'), True),
        (dict(teacher_view='tiles', present='teacher'), False),
        (dict(teacher_view='tiles', reading='similarity'), False),
        (dict(), False),
    ],
)
def test_tiles_that_attention_cannot_tell_apart_are_warned_of(
    monkeypatch, options, warned
):
    seen = []
    monkeypatch.setattr(prompted, 'print_log', lambda text, **_: seen.append(text))
    monkeypatch.setattr(LetterTeacher, 'READINGS', ('attention', 'similarity'))
    LetterTeacher(**options)
    assert ['count nearly alike' in text for text in seen] == [True] * warned


def test_further_texts_have_the_maps_of_classes_of_that_name_after_the_classes(pixels):
    batch = [sample_of([0])] * 2
    teacher = LetterTeacher(more_texts=['sky', 'sandy beach'], present='all')
    assert teacher.num_texts == 5 and teacher.class_names == CLASSES
    found = teacher(pixels, batch, None, compact=False)
    plain = LetterTeacher(present='all', named=(*CLASSES, 'sky', 'sandy beach'))
    every = plain(pixels, batch, None, compact=False)
    assert found.present.all() and found.present.shape == (2, 5)
    for name in ('maps', 'features', 'log_mass'):
        torch.testing.assert_close(getattr(found, name), getattr(every, name))


def test_further_texts_keep_their_rows_where_classes_have_several_prompts(pixels):
    options = dict(
        template=['a {}', 'the photo of a {}'],
        synonyms=dict(dog=['good old hound']),
        more_texts=['sky'],
        present='all',
    )
    teacher = LetterTeacher(**options)
    teacher.wants_scores = True
    found = teacher(pixels, [sample_of([])] * 2, None)
    letters = torch.tensor([18.0, 29.0, 19.0, 18.0])  # 'the photo of a ' is 15 long
    torch.testing.assert_close(
        found.scores, (letters / 100).expand(2, -1), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(more_texts='sky'), "more_texts='sky' must be a list"),
        (dict(more_texts=['sky', 'sea', 'sky']), r"has \['sky'\] more than once"),
        (dict(more_texts=['sky', 'dog']), r"has \['dog'\], which are classes"),
        (dict(more_texts=['sky'], present='ground_truth'), "present='all', not .*'gro"),
        (
            dict(more_texts=['sky'], texts='captions'),
            "texts='classes' .* not 'captions",
        ),
    ],
)
def test_further_texts_that_nobody_can_place_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LetterTeacher(**{'present': 'all', **options})
