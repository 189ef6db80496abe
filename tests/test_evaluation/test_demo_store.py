"""Cached targets of a benchmark go the way that those of a training go."""

import pytest
import torch
from mmdet.registry import MODELS

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation import Setting, Variant, build_subjects
from lfi_mmdet.models.teachers import GroundTruthTeacher

MEASURES = ('train_step',)


@pytest.fixture
def subjects(tiny_config):
    path, plain = tiny_config.filename, {'model.backbone.num_queries': 0}
    return build_subjects(
        Variant('twin', path, 'none', MEASURES, options=plain),
        [
            Variant('online', path, 'online', MEASURES),
            Variant('cached', path, 'cached', MEASURES),
        ],
        Setting(shape=(64, 64), batch_size=2),
    )


def targets(subject):
    model = subject.model
    batch = model.data_preprocessor(subject.data, training=True)
    return model.teacher(
        batch['inputs'], batch['data_samples'], model.data_preprocessor
    )


def test_what_was_stored_is_what_the_teacher_says(subjects):
    twin, online, cached = subjects
    assert type(cached.model.teacher).__name__ == 'CachedTeacher'
    expected, found = targets(online), targets(cached)
    assert torch.equal(found.texts, expected.texts)
    assert torch.equal(found.present, expected.present) and found.present.all()
    # uint8 rounds
    assert not torch.equal(found.maps, expected.maps)
    assert (found.maps - expected.maps).abs().sum((-2, -1)).max() < 0.02
    assert 'interactions' not in twin.data['data_samples'][0]
    assert all(map(torch.equal, twin.data['inputs'], cached.data['inputs']))


def test_the_store_is_not_needed_any_more(subjects):
    _, _, cached = subjects
    with pytest.raises(InputError, match='no store of targets'):
        type(cached.model.teacher)(cached.model.teacher.store)
    cached.step()


def test_a_cached_teacher_in_the_config_stands_for_the_one_it_names(tiny_config):
    path = tiny_config.filename
    inner = dict(type='GroundTruthTeacher', grid_size=8, blur=[2.0])
    teacher = dict(type='CachedTeacher', store='/nowhere', teacher=inner)
    options = {'model.teacher': dict(_delete_=True, **teacher)}
    for name in ('online', 'cached'):
        variant = Variant(name, path, name, MEASURES, options=options)
        cfg = variant.read_config(None, pretrained=False)
        assert cfg.model.teacher == inner


class TeacherWithFeatures(GroundTruthTeacher):
    feature_dims = 5

    def targets(self, *args):
        found = super().targets(*args)
        found.features = torch.randn(*found.maps.shape[:3], self.feature_dims)
        return found


@pytest.mark.parametrize('loss', [None, dict(type='InteractionFeatureLoss')])
def test_features_are_stored_where_a_loss_needs_them(tiny_config, monkeypatch, loss):
    name = TeacherWithFeatures.__name__
    monkeypatch.setitem(MODELS.module_dict, name, TeacherWithFeatures)
    options = {
        'model.teacher.type': name,
        'model.distiller.losses.feature': loss,
        'model.distiller.losses.relation': dict(type='InteractionRelationLoss'),
    }
    path = tiny_config.filename
    _, cached = build_subjects(
        Variant('twin', path, options={'model.backbone.num_queries': 0}),
        [Variant('cached', path, 'cached', MEASURES, options=options)],
        Setting(shape=(64, 64)),
    )
    stored = cached.data['data_samples'][0].interactions
    assert ('features' in stored) == (loss is not None)
    assert ('relations' in stored) == (loss is None)
    cached.step()
