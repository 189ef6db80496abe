"""What ShuffledTeacher says of an image is true, but of another image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks

from lfi_mmdet.models.teachers import EnsembleTeacher, ShuffledTeacher
from tests.stores import some_record, write_store

from . import tiny_open_clip
from .brightness import CLASSES, BrightnessTeacher, ask, image_of

DARK, GREY, LIGHT = (30.0, [0]), (120.0, [0, 1]), (220.0, [2])


def shuffled(**inner) -> ShuffledTeacher:
    return ShuffledTeacher(dict(type='BrightnessTeacher', **inner))


def truth(image):
    """What the teacher inside says of an image about all texts."""
    return ask(BrightnessTeacher(present='all'), image)


def told_of(targets, row, images):
    """Which of the images a row of targets is about; by maps and all else."""
    names = ('maps', 'features', 'log_mass')
    found = [
        index
        for index, image in enumerate(images)
        if all(
            torch.allclose(getattr(targets, name)[row], getattr(truth(image), name)[0])
            for name in names
        )
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_every_image_gets_the_targets_of_another_and_each_is_used_once():
    images = [image_of(*one) for one in (DARK, GREY, LIGHT)]
    targets = ask(shuffled(present='all'), *images)
    told = [told_of(targets, row, images) for row in range(3)]
    assert sorted(told) == [0, 1, 2]  # the marginal distribution is untouched
    assert all(row != other for row, other in enumerate(told))


def test_the_texts_are_those_of_the_image_itself():
    images = [image_of(*one) for one in (DARK, GREY, LIGHT)]
    plain, targets = (ask(t, *images) for t in (BrightnessTeacher(), shuffled()))
    assert torch.equal(targets.present, plain.present)
    few = ask(shuffled(), *images, compact=True)
    assert few.texts[1].tolist() == [0, 1] and few.present[1].all()
    # the light image shows no cat, and is asked about one all the same
    assert few.texts[0, 0] == 0 and few.present[0].tolist() == [True, False]
    torch.testing.assert_close(few.maps[0, :, 0], truth(images[2]).maps[0, :, 0])


def test_what_the_teacher_counts_as_present_stays_that_of_the_image_itself():
    images = [image_of(*one) for one in (DARK, GREY, LIGHT)]
    presence = dict(threshold=0.5, top=3)
    options = dict(present='teacher', presence=presence)
    plain = ask(BrightnessTeacher(**options), *images)
    targets = ask(shuffled(**options), *images)
    assert plain.present.sum(1).tolist() == [0, 1, 3]
    assert torch.equal(targets.present, plain.present)
    assert [told_of(targets, row, images) for row in range(3)] == [2, 0, 1]


def test_a_batch_of_one_gets_an_image_from_before_but_never_its_own():
    teacher, known = shuffled(present='all'), [image_of(*o) for o in (DARK, GREY)]
    first = ask(teacher, known[0], compact=True)
    assert not first.present.any() and torch.isfinite(first.maps).all()
    assert not ask(teacher, known[0]).present.any()  # still the only one
    told = []
    for index in (1, 1, 0, 0, 0, 1, 0):
        targets = ask(teacher, known[index])
        assert targets.present.all()
        told.append(told_of(targets, 0, known))
    assert told == [0, 0, 1, 1, 1, 0, 1]


def test_the_first_image_is_not_supervised_either_if_the_teacher_decides():
    teacher = shuffled(present='teacher')
    assert not ask(teacher, image_of(*LIGHT)).present.any()
    assert ask(teacher, image_of(200.0, [])).present.any()


def test_an_image_that_is_twice_in_its_batch_does_not_get_its_own_targets():
    dark, grey, light = (image_of(*one) for one in (DARK, GREY, LIGHT))
    teacher, images = shuffled(present='all'), [dark, grey, light]
    for batch in ([dark, dark, grey], [dark, dark], [grey, dark, grey, light]):
        targets = ask(teacher, *batch)
        for row, (_, sample) in enumerate(batch):
            told = told_of(targets, row, images)
            assert told is not None
            assert images[told][1].img_path != sample.img_path


def test_images_are_told_apart_by_their_ids_where_they_have_no_path():
    images = [image_of(*one, img_id=index) for index, one in enumerate((DARK, GREY))]
    for _, sample in images:
        sample.pop('img_path')
    targets = ask(shuffled(present='all'), images[0], images[0], images[1])
    assert [told_of(targets, row, images) for row in range(3)] == [1, 1, 0]


def test_the_other_image_is_seen_without_padding_whatever_its_shape():
    images = [image_of(*DARK, shape=(16, 24)), image_of(*LIGHT, shape=(32, 8))]
    targets = ask(shuffled(present='all'), *images)
    assert [told_of(targets, row, images) for row in range(2)] == [1, 0]
    teacher = shuffled(present='all')
    ask(teacher, images[0])
    assert told_of(ask(teacher, images[1]), 0, images) == 0


def test_whoever_resumes_or_runs_beside_gets_the_same():
    batches = [[image_of(*DARK), image_of(*GREY)], [image_of(*LIGHT), image_of(*DARK)]]
    whole, resumed = shuffled(), shuffled()
    for batch in batches:
        last = ask(whole, *batch)
    assert torch.equal(ask(resumed, *batches[1]).maps, last.maps)


def test_remembered_images_do_not_keep_their_batch_alive():
    teacher = shuffled()
    ask(teacher, *[image_of(float(v), [0]) for v in range(10, 90, 10)])
    held = [image.pixels for image in teacher._before]
    assert len(held) == 2
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in held)


def test_words_of_the_own_captions_are_looked_for_in_the_other_image(saved):
    inner = dict(
        type='CLIPTeacher', model='tiny-clip', pretrained=saved('tiny-clip')[1],
        texts='captions', max_free=1, present='all',
        class_names=list(tiny_open_clip.CLASSES),
    )  # fmt: skip
    captions = (['a cat under a tree'], ['a zebra'])
    random = torch.Generator().manual_seed(0)
    pixels = [255 * torch.rand(3, 32, 32, generator=random) for _ in captions]
    samples = [image_of(v, [], (32, 32), captions=c)[1] for v, c in enumerate(captions)]
    plain = MODELS.build(inner)
    swapped = [image_of(9, [], (32, 32), captions=c)[1] for c in captions]
    expected = ask(plain, (pixels[1], swapped[0]), (pixels[0], swapped[1]))
    teacher = ShuffledTeacher(inner)
    targets = ask(teacher, *zip(pixels, samples))
    assert teacher.num_texts == 4
    assert targets.present.tolist() == [
        [True, False, False, True],
        [False, False, True, False],
    ]
    for name in ('maps', 'features', 'log_mass', 'present'):
        torch.testing.assert_close(getattr(targets, name), getattr(expected, name))
    assert not torch.allclose(targets.maps, ask(plain, *zip(pixels, samples)).maps)


def test_a_class_that_the_other_image_lacks_has_no_place_there():
    def halves(*labels):  # the first image shows its class left, the second right
        for index, label in enumerate(labels):
            mask = np.zeros((1, 32, 32), np.uint8)
            mask[:, :, 16 * index : 16 * index + 16] = 1
            pixels, sample = image_of(index, [label], (32, 32))
            sample.gt_instances.masks = BitmapMasks(mask, 32, 32)
            yield pixels, sample

    inner = dict(type='GroundTruthTeacher', grid_size=4, blur=(0.0,), floor=0.0)
    teacher = ShuffledTeacher(dict(inner, class_names=CLASSES))
    maps = ask(teacher, *halves(0, 0)).maps[:, 0, 0]
    assert (maps[0, :, 2:] == 1 / 8).all() and (maps[1, :, :2] == 1 / 8).all()
    targets = ask(teacher, *halves(0, 1))
    assert targets.present.tolist() == [[True, False, False], [False, True, False]]
    assert (targets.maps[0, 0, 0] == 1 / 16).all()


def test_several_teachers_are_shuffled_one_by_one_and_alike():
    inner = dict(type='BrightnessTeacher', present='all')
    with pytest.raises(ValueError, match='put one around each of teacher.teachers'):
        ShuffledTeacher(dict(type='EnsembleTeacher', teachers=[inner, inner]))
    each = dict(type='ShuffledTeacher', teacher=inner)
    images = [image_of(*one) for one in (DARK, GREY, LIGHT)]
    both = ask(EnsembleTeacher([each, each]), *images)
    torch.testing.assert_close(both.maps, ask(shuffled(present='all'), *images).maps)


def test_stored_targets_of_an_image_say_nothing_about_the_texts_of_another(tmp_path):
    store = write_store(tmp_path / 'store', {1: some_record()})
    with pytest.raises(ValueError, match='cannot ask CachedTeacher about another'):
        ShuffledTeacher(dict(type='CachedTeacher', store=store))
