"""LFI beside other distillation, in one detector."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from lfi_mmdet.engine.export import export_student
from lfi_mmdet.evaluation.demo_store import needs_features
from lfi_mmdet.evaluation.reading import read_interactions
from lfi_mmdet.evaluation.train_step import interval
from tests.test_models.test_detectors.test_competitors import (  # noqa: F401
    LOSSES,
    TEACHERS,
    batch,
    build,
    kept,
    losses_of,
    tiny_cfg,
    tiny_models,
    total,
)
from tests.test_tools.conftest import in_place
from tests.tiny import CLASSES

ATTENTION = 'loss_lfi_attention'


def part(*names, **settings):
    losses = {name: dict(type=LOSSES[name]) for name in names}
    return dict(type='FeatureDistiller', losses=losses, **settings)


def model_cfg(**changes) -> Config:
    """The tiny detector with LFI and CWD; parts may be changed or added."""
    cfg = tiny_cfg()
    cfg.model.teacher = dict(TEACHERS['clip'])
    parts = dict(interactions=cfg.model.distiller.to_dict(), features=part('cwd'))
    cfg.model.distiller = dict(type='CombinedDistiller', distillers=parts | changes)
    return cfg


def test_each_part_gives_the_losses_that_it_gives_alone():
    model = build(model_cfg())
    together = losses_of(model)
    model.distiller, both = model.distiller.distillers['interactions'], model.distiller
    alone = losses_of(model)
    torch.testing.assert_close(together[ATTENTION], alone[ATTENTION])
    model.distiller = both.distillers['features']
    alone = losses_of(model)
    torch.testing.assert_close(together['loss_kd_cwd'], alone['loss_kd_cwd'])
    assert together['loss_kd_cwd'] > 0 and together[ATTENTION] > 0
    assert both.loss_names == [ATTENTION, 'loss_kd_cwd']


def test_the_teacher_is_asked_once_for_maps_and_tokens():
    model = build(model_cfg())
    model.teacher.targets, seen = kept(model.teacher.targets)
    losses_of(model)
    assert len(seen) == 1
    assert seen[0].maps is not None and seen[0].tokens.shape[-1] == 32


def test_every_parameter_learns():
    model = build(model_cfg(features=part(*LOSSES)))
    total(losses_of(model)).backward()
    assert [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ] == []


def test_a_part_that_rests_gives_zeros_while_the_other_learns(monkeypatch):
    model = build(model_cfg())
    interactions, features = model.distiller.parts
    monkeypatch.setattr(features.schedule, 'current', lambda: 0.0)
    monkeypatch.setattr(features, 'align', None)  # it must not be compared
    losses = losses_of(model)
    assert losses['loss_kd_cwd'] == 0 and losses[ATTENTION] > 0
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    monkeypatch.setattr(interactions.schedule, 'current', lambda: 0.0)
    monkeypatch.setattr(model.teacher, 'targets', None)  # nobody needs it
    assert losses_of(model)[ATTENTION] == 0


def test_a_round_of_iterations_is_one_of_all_schedules():
    cfg = model_cfg(features=part('cwd', schedule=dict(interval=4)))
    cfg.model.distiller.distillers.interactions.schedule = dict(interval=6)
    assert interval(build(cfg)) == 12


def test_regions_are_handed_to_the_part_that_looks_at_them():
    model = build(model_cfg(features=part('vild')))
    assert model.teacher.wants_tokens == 'joint'
    assert losses_of(model)['loss_kd_vild'] > 0
    assert copy.deepcopy(model).distiller.parts[1].regions.args[0] is not model


def test_maps_are_read_beside_other_distillation():
    cfg = model_cfg()
    model = build(cfg)
    reading = read_interactions(model, copy.deepcopy(batch()))
    cfg.model.distiller = cfg.model.distiller.distillers.interactions
    alone = build(cfg)
    alone.load_state_dict(model.state_dict(), strict=False)
    expected = read_interactions(alone, copy.deepcopy(batch()))
    for found, pair in zip(reading.pairs, expected.pairs, strict=True):
        torch.testing.assert_close(found.log_attention, pair.log_attention)
        torch.testing.assert_close(found.target, pair.target)
    assert reading.layers == expected.layers


def test_a_store_for_the_benchmark_holds_what_any_part_compares():
    assert not needs_features(model_cfg())
    cfg = model_cfg()
    cfg.model.distiller.distillers.interactions.losses.feature = dict(
        type='InteractionFeatureLoss'
    )
    assert needs_features(cfg)


def test_the_exported_student_keeps_its_queries(monkeypatch, tmp_path):
    in_place(monkeypatch, tmp_path)
    cfg = model_cfg()
    model = build(cfg)
    path = tmp_path / 'trained.pth'
    torch.save(
        dict(meta=dict(cfg=cfg.pretty_text), state_dict=model.state_dict()), path
    )
    export = export_student(str(path), tmp_path / 'student.pth')
    held = sum(p.numel() for p in model.distiller.parameters())
    assert export.queries and export.dropped == dict(distiller=held) and held > 0


def test_a_backbone_learns_without_labels():
    cfg = model_cfg().model
    cfg.teacher.present = 'all'
    keys = ('backbone', 'teacher', 'distiller', 'data_preprocessor')
    model = MODELS.build(
        dict(type='InteractionPretrainer', **{key: cfg[key] for key in keys})
    )
    model.set_class_names(CLASSES)
    data = model.data_preprocessor(copy.deepcopy(batch()), training=True)
    losses = model(data['inputs'], data['data_samples'], mode='loss')
    assert set(losses) == {ATTENTION, 'loss_kd_cwd'}
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# -- what cannot be --------------------------------------------------------------------
@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(interactions=None, features=None), 'distillers names none'),
        (dict(features=part('cwd'), more=part('vild')),
         "different tokens of the teacher, .*'features': 'tower', 'more': 'joint'"),
        (dict(more=part('cwd')),
         r"distillers\.features and \.more both have a 'loss_kd_cwd'"),
        (dict(features=part('cwd', output=0), more=part('at')),
         "'features': \\[0\\], 'more': \\[-1\\]} of the backbone, counted"),
        (dict(features=dict(type='FeatureDistiller', losses=dict(a=None))),
         'names no loss'),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_when_built(changes, message):
    with pytest.raises(ValueError, match=message):
        build(model_cfg(**changes))


def test_the_part_without_its_queries_is_named():
    cfg = model_cfg()
    cfg.model.backbone.num_queries = 0
    with pytest.raises(
        ValueError, match=r'distiller\.distillers\.interactions \(Inter'
    ):
        build(cfg)


def test_the_part_of_an_unknown_type_is_named():
    with pytest.raises(KeyError, match=r"distillers\.f\.type='FeatureDistiler' is not"):
        build(model_cfg(f=dict(type='FeatureDistiler')))


def test_class_names_are_checked_by_the_part_with_queries():
    model = build(model_cfg())
    with pytest.raises(ValueError, match='query k belongs to class k'):
        model.set_class_names((*CLASSES, 'zebra'))


def test_the_last_output_that_any_part_looks_at_counts():
    model = build(model_cfg(more=part('at')))
    model.distiller.distillers['features'].output = -2
    assert model.distiller.last_output() == -1
    assert build(model_cfg(features=None)).distiller.last_output() is None
