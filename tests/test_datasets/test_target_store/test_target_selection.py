"""Which texts of a batch are kept, and what is kept of them."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from lfi_mmdet.datasets.target_store.selection import TextChoice, read_records
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.models.teachers.caption_words import CaptionWord
from lfi_mmdet.structures import InteractionTargets

LABELS = ([3, 1], [])


class ToyTeacher(FrozenTeacher):
    """Reads what is asked for; text t scores t / 10 in the first image."""

    PRESENT = ('ground_truth', 'teacher', 'all')

    def __init__(self, has_scores=True, tells_mass=True, **kwargs):
        super().__init__(view=dict(size=8), **kwargs)
        self.has_scores, self.tells_mass = has_scores, tells_mass
        self.set_class_names('abcde')

    num_layers = 2
    feature_dims = 3

    def encode_texts(self, class_names):
        """Nothing to encode."""

    def interact(self, images, present):
        random = torch.Generator().manual_seed(0)
        scores = torch.stack((torch.arange(5) / 10, torch.arange(5).flip(0) / 10))
        if present is None:
            present = self.presence(scores)
        maps = torch.rand(2, 2, 5, 16, generator=random).softmax(-1)
        # what was not asked for is not read
        maps = torch.where(present[:, None, :, None], maps, 1 / 16)
        return InteractionTargets(
            maps=maps.unflatten(-1, (4, 4)),
            present=present,
            features=torch.rand(2, 2, 5, 3, generator=random) + 0.1,
            log_mass=scores.log()[:, None].repeat(1, 2, 1) if self.tells_mass else None,
            scores=scores if self.wants_scores and self.has_scores else None,
        )


class Preprocessor(torch.nn.Module):
    """A student that does not normalise."""


def read(teacher, choice, features=False):
    samples = []
    for labels in LABELS:
        sample = DetDataSample(metainfo=dict(img_shape=(8, 8), img_id=len(samples)))
        sample.gt_instances = InstanceData(labels=torch.tensor(labels).long())
        samples.append(sample)
    batch = dict(inputs=torch.rand(2, 3, 8, 8), data_samples=samples)
    choice = TextChoice.parse(choice)
    return read_records(teacher, batch, Preprocessor(), choice, features)


def everything(teacher):
    """Targets of all texts."""
    teacher.present = 'all'
    return teacher.interact(None, torch.ones(2, 5, dtype=torch.bool))


def test_present_texts_are_kept_with_maps_and_cosines():
    first, second = read(ToyTeacher(), 'present')
    targets = everything(ToyTeacher())
    assert first.texts.tolist() == [1, 3] and first.present.all()
    np.testing.assert_array_equal(first.maps, targets.maps[0, :, [1, 3]])
    a, b = targets.features[0, :, 1], targets.features[0, :, 3]
    cosines = torch.cosine_similarity(a, b, -1)
    np.testing.assert_allclose(first.relations[:, 0, 1], cosines, rtol=1e-5)
    np.testing.assert_allclose(first.relations[:, 1, 1], 1, rtol=1e-5)
    assert first.features is None and first.words is None
    assert second.maps.shape == (2, 0, 4, 4) and second.texts.tolist() == []
    first.check()
    second.check()


def test_features_are_kept_in_the_place_of_cosines():
    first, _ = read(ToyTeacher(), 'present', features=True)
    targets = everything(ToyTeacher())
    np.testing.assert_array_equal(first.features, targets.features[0, :, [1, 3]])
    assert first.relations is None


def test_the_teachers_own_score_decides_what_is_present():
    teacher = ToyTeacher(present='teacher', presence=dict(threshold=0.25))
    first, second = read(teacher, 'present')
    assert first.texts.tolist() == [3, 4] and second.texts.tolist() == [0, 1]


@pytest.mark.parametrize(
    'rule, verdicts',
    [
        ('ground_truth', [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]),
        ('teacher', [[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]),
        ('all', [[1] * 5, [1] * 5]),
    ],
)
def test_all_texts_are_read_and_what_is_present_is_noted(rule, verdicts):
    teacher = ToyTeacher(present=rule, presence=dict(threshold=0.25))
    records = read(teacher, 'all')
    targets = everything(ToyTeacher())
    for record, maps, verdict in zip(records, targets.maps, verdicts):
        np.testing.assert_array_equal(record.maps, maps)
        assert record.present.tolist() == [bool(v) for v in verdict]
        assert record.texts.tolist() == [0, 1, 2, 3, 4]
    # the teacher is left as it was
    assert teacher.present == rule and teacher.wants_scores == (rule == 'teacher')


@pytest.mark.parametrize('scores', [True, False], ids=['scores', 'mass'])
def test_the_best_texts_are_those_present_and_then_those_that_score_highest(scores):
    first, second = read(ToyTeacher(has_scores=scores), 'top:3')
    assert first.texts.tolist() == [1, 3, 4]
    assert first.present.tolist() == [True, True, False]
    assert second.texts.tolist() == [0, 1, 2] and not second.present.any()
    first, _ = read(ToyTeacher(has_scores=scores), 'top:1')
    assert first.texts.tolist() == [3]
    assert len(read(ToyTeacher(has_scores=scores), 'top:99')[0].texts) == 5


def test_a_teacher_that_cannot_rank_its_texts_is_refused():
    with pytest.raises(InputError, match='--texts top:N.*neither scores nor masses'):
        read(ToyTeacher(has_scores=False, tells_mass=False), 'top:2')


def test_free_words_of_captions_are_kept_in_the_order_of_their_rows():
    class Words(ToyTeacher):
        max_free = 2

        def words_of(self, data_samples):
            def word(text, row):
                owner = row if row < 5 else None
                return CaptionWord('a caption', 0, 1, text, owner, row)

            return [[word('sky', 6), word('b', 1), word('snow', 5)], []]

    first, second = read(Words(), 'present')
    assert first.words == ('snow', 'sky') and second.words == ()


@pytest.mark.parametrize('text', ['some', 'top', 'top:', 'top:0', 'top:-1', 'all:2'])
def test_an_unknown_choice_is_refused(text):
    with pytest.raises(InputError, match=f'--texts {text}: choose "present"'):
        TextChoice.parse(text)
