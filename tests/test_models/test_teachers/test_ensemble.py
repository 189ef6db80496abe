"""Several teachers at once are a weighted mixture, whatever each of them is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from lfi_mmdet.models.losses.attention import map_divergence
from lfi_mmdet.models.losses.relation import cosines
from lfi_mmdet.models.teachers import EnsembleTeacher, FrozenTeacher
from lfi_mmdet.structures import InteractionTargets

CLASSES = ('cat', 'dog', 'bird')


class FixedTeacher(FrozenTeacher):
    """Random but fixed maps of any size."""

    def __init__(
        self, seed=0, layers=2, grid=4, dims=5, present='ground_truth', scored=False,
        reading=None, related=False, extra=0, class_names=None, more_texts=(),
    ):  # fmt: skip
        super().__init__(view=dict(size=8), present=present, reading=reading)
        self.freeze(nn.Linear(2, 2))
        self.seed, self.num, self.grid, self.dims = seed, layers, grid, dims
        self.scored, self.related, self.extra = scored, related, extra
        self.more_texts = tuple(more_texts)
        if class_names is not None:
            self.set_class_names(class_names)

    @property
    def num_layers(self):
        return self.num

    @property
    def num_texts(self):
        return len(CLASSES) + self.extra

    @property
    def feature_dims(self):
        return None if self.related else self.dims

    @property
    def has_relations(self):
        return self.dims is not None

    def encode_texts(self, class_names):
        pass

    def interact(self, images, present):
        generator = torch.Generator().manual_seed(self.seed)
        shape = (len(images), self.num, len(CLASSES))
        maps = torch.rand(*shape, self.grid**2, generator=generator).softmax(-1)
        features = None
        if self.dims is not None:
            features = torch.randn(*shape, self.dims, generator=generator)
        if present is None:
            present = torch.zeros(len(images), len(CLASSES), dtype=torch.bool)
            present[:, self.seed] = True
        return InteractionTargets(
            maps=maps.unflatten(-1, (self.grid, self.grid)),
            present=present,
            features=None if self.related else features,
            relations=cosines(features) if self.related else None,
            scores=torch.rand(shape[0], 3, generator=generator)
            if self.scored
            else None,
        )


@pytest.fixture(autouse=True)
def registered():
    MODELS.register_module(module=FixedTeacher)
    yield
    MODELS.module_dict.pop('FixedTeacher')


def ensemble(*members, **kwargs):
    cfgs = [dict(type='FixedTeacher', **member) for member in members]
    return EnsembleTeacher(cfgs, class_names=CLASSES, **kwargs)


def ask(teacher, compact=False):
    samples = []
    for labels in ([0, 2], []):
        sample = DetDataSample(metainfo=dict(img_shape=(16, 16)))
        sample.gt_instances = InstanceData(labels=torch.tensor(labels).long())
        samples.append(sample)
    return teacher(torch.zeros(2, 3, 16, 16), samples, None, compact=compact)


def test_maps_are_weighted_means_and_the_attention_loss_a_weighted_sum():
    teacher = ensemble(dict(seed=1), dict(seed=2), weights=[3, 1])
    both = ask(teacher)
    one, other = (ask(member) for member in teacher.teachers)
    torch.testing.assert_close(both.maps, 0.75 * one.maps + 0.25 * other.maps)
    log_a = torch.randn(2, 2, 3, 16, requires_grad=True)

    def gradient(targets):
        loss = map_divergence(log_a.log_softmax(-1), targets.maps.flatten(-2)).sum()
        return torch.autograd.grad(loss, log_a)[0]

    expected = 0.75 * gradient(one) + 0.25 * gradient(other)
    torch.testing.assert_close(gradient(both), expected)


def test_cosines_of_features_are_weighted_means():
    teacher = ensemble(dict(seed=1, dims=5), dict(seed=2, dims=7), weights=[3, 1])
    assert teacher.feature_dims == 12
    both = ask(teacher)
    one, other = (ask(member) for member in teacher.teachers)
    expected = 0.75 * cosines(one.features) + 0.25 * cosines(other.features)
    image = both.present[0][:, None] & both.present[0]
    torch.testing.assert_close(
        cosines(both.features)[0][:, image], expected[0][:, image]
    )


def test_relations_stand_in_where_a_member_has_no_features():
    members = [dict(seed=1, dims=5), dict(seed=2, dims=7)]
    full = ask(ensemble(*members, weights=[3, 1]))
    teacher = ensemble(members[0], dict(members[1], related=True), weights=[3, 1])
    assert teacher.feature_dims is None and teacher.has_relations
    assert not teacher.has_mass
    found = ask(teacher)
    assert found.features is None
    image = found.present[0][:, None] & found.present[0]
    torch.testing.assert_close(
        found.relations[0][:, image], cosines(full.features)[0][:, image]
    )


def test_if_one_member_decides_what_is_present_the_answers_do(monkeypatch):
    monkeypatch.setattr(FixedTeacher, 'PRESENT', ('ground_truth', 'teacher'))
    teacher = ensemble(dict(seed=2), dict(seed=1, present='teacher'))
    both = ask(teacher, compact=True)
    assert both.texts is None  # what is present is not known on the CPU
    assert both.present.tolist() == [[True, True, True], [False, True, False]]


def test_a_text_is_taken_from_those_that_have_it_present():
    teacher = ensemble(dict(seed=1), dict(seed=2, present='all'))
    both = ask(teacher)
    one, other = (ask(member) for member in teacher.teachers)
    assert both.present.all()
    torch.testing.assert_close(both.maps[0, :, 1], other.maps[0, :, 1])
    mean = (one.maps + other.maps)[0, :, 0] / 2
    torch.testing.assert_close(both.maps[0, :, 0], mean)
    few = ask(teacher, compact=True)
    assert few.texts.tolist() == [[0, 1, 2], [0, 1, 2]]
    torch.testing.assert_close(few.maps, both.maps)


def test_grids_and_layers_are_brought_onto_the_finest():
    teacher = ensemble(dict(layers=1, grid=2), dict(seed=2, layers=3, grid=6))
    both = ask(teacher)
    assert teacher.num_layers == 3 and both.maps.shape == (2, 3, 3, 6, 6)
    torch.testing.assert_close(both.maps.sum((-2, -1)), torch.ones(2, 3, 3))
    coarse, fine = (ask(member) for member in teacher.teachers)
    up = F.interpolate(coarse.maps[:, 0], size=(6, 6), mode='bilinear')
    up = up / up.sum((-2, -1), keepdim=True)
    for layer in range(3):
        torch.testing.assert_close(both.maps[:, layer], (up + fine.maps[:, layer]) / 2)


def test_scores_are_averaged_where_all_have_them():
    teacher = ensemble(dict(seed=1, scored=True), dict(seed=2, scored=True))
    both = ask(teacher)
    one, other = (ask(member) for member in teacher.teachers)
    torch.testing.assert_close(both.scores, (one.scores + other.scores) / 2)
    # also where a text is present for one only
    some = ensemble(dict(seed=1, scored=True), dict(seed=2, scored=True, present='all'))
    torch.testing.assert_close(ask(some).scores, both.scores)
    assert ask(ensemble(dict(scored=True), dict())).scores is None


def test_members_may_take_gradients(monkeypatch):
    inner = ensemble(dict()).teachers[0].interact
    modes = []

    def interact(images, present):
        modes.append(torch.is_inference_mode_enabled())
        return inner(images, present)

    monkeypatch.setattr(FixedTeacher, 'READINGS', ('attention', 'gradient'))
    teacher = ensemble(dict(reading='gradient'), dict(seed=1))
    for member in teacher.teachers:
        monkeypatch.setattr(member, 'interact', interact)
    ask(teacher)
    assert modes == [False, True]


def test_every_member_keeps_the_contracts():
    teacher = ensemble(dict(), dict(seed=1))
    before = teacher.weights_hash()
    teacher.verify()
    teacher.apply_(lambda value: value.half())
    assert all(
        next(m.network.parameters()).dtype == torch.float16 for m in teacher.teachers
    )
    rounded = teacher.weights_hash()
    with torch.no_grad():
        next(teacher.teachers[1].network.parameters()).add_(1)
    assert teacher.weights_hash() not in (before, rounded)
    with pytest.raises(RuntimeError, match='FixedTeacher changed'):
        teacher.verify()
    seen = []
    for member in teacher.teachers:
        member.check_dataset = seen.append
    teacher.check_dataset('dataset')
    assert seen == ['dataset'] * 2


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(teachers=[]), 'teachers is an empty list'),
        (dict(teachers=[{}, {}], weights=[1]), r'weights=\[1\] must be 2 positive'),
        (dict(teachers=[{}], weights=[0]), r'weights=\[0\] must be 1 positive'),
        (dict(teachers=[{}, dict(dims=None)]), "'FixedTeacher'.* have no features"),
    ],
)
def test_impossible_ensembles_are_refused(kwargs, message):
    kwargs['teachers'] = [dict(type='FixedTeacher', **t) for t in kwargs['teachers']]
    with pytest.raises(ValueError, match=message):
        EnsembleTeacher(**kwargs)


def test_class_names_are_shared_or_have_to_agree():
    members = [dict(type='FixedTeacher'), dict(type='FixedTeacher')]
    named = [members[0], dict(members[1], class_names=CLASSES)]
    teacher = EnsembleTeacher(named)
    assert teacher.class_names == teacher.teachers[0].class_names == CLASSES
    with pytest.raises(ValueError, match=r"teachers.1 has other .* \['bird', 'cow'\]"):
        EnsembleTeacher(named, class_names=('cat', 'dog', 'cow'))
    more = [members[0], dict(members[1], extra=2)]
    with pytest.raises(ValueError, match=r'\[3, 5\] texts; .* the same max_free'):
        EnsembleTeacher(more, class_names=CLASSES)


def test_further_texts_are_shared():
    sky, sea = (dict(type='FixedTeacher', more_texts=[name]) for name in ('sky', 'sea'))
    assert EnsembleTeacher([sky, sky], class_names=CLASSES).more_texts == ('sky',)
    with pytest.raises(
        ValueError, match=r"more_texts \[\('sky',\), \('sea',\)\]; give"
    ):
        EnsembleTeacher([sky, sea], class_names=CLASSES)


def test_a_member_is_named_when_it_cannot_be_built():
    with pytest.raises(KeyError, match=r"model.teacher.teachers.1.type='NoTeacher'"):
        EnsembleTeacher([dict(type='FixedTeacher'), dict(type='NoTeacher')])


def test_rows_that_only_fill_up_do_not_overwrite_their_text():
    maps = torch.rand(2, 1, 2, 2, 2)
    targets = InteractionTargets(
        maps=maps,
        present=torch.tensor([[True, True], [True, False]]),
        texts=torch.tensor([[0, 1], [1, 1]]),
    )
    back = targets.spread(3)
    assert back.present.tolist() == [[True, True, False], [False, True, False]]
    assert torch.equal(back.maps[1, :, 1], maps[1, :, 0])


def test_targets_that_were_selected_can_be_spread_again():
    targets = ask(ensemble(dict(seed=1)))
    targets.log_mass = torch.rand(2, 2, 3)
    targets.relations = cosines(targets.features)
    back = targets.select(targets.present).spread(3)
    assert torch.equal(back.present, targets.present)
    where = targets.present[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(back.maps[where], targets.maps[where])
    torch.testing.assert_close(back.features[where], targets.features[where])
    assert (back.maps[~where] == 1 / 16).all()
    assert torch.equal(back.log_mass[where], targets.log_mass[where])
    few = targets.select(targets.present)
    torch.testing.assert_close(few.relations, cosines(few.features))
    both = where[..., None] & where[..., None, :]
    assert torch.equal(back.relations, targets.relations.masked_fill(~both, 0))
    assert (back.log_mass[~where] < -1e30).all()
