"""Labelled and unlabelled images in one batch: the latter feel only the teacher."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from tests.stores import some_record, write_store
from tests.test_models.test_detectors.test_contracts import (
    batch,
    detector_cfg,
    losses_of,
    total,
)
from tests.tiny import CLASSES
from tests.unlabelled import TinyConvTeacher  # noqa: F401

TEACHER = dict(type='TinyConvTeacher', present='all', class_names=CLASSES)


def build(mixed=True, **changes):
    torch.manual_seed(0)
    cfg = detector_cfg(**dict(dict(teacher=TEACHER), **changes))
    if mixed:
        cfg.data_preprocessor = dict(
            type='MultiBranchDataPreprocessor', data_preprocessor=cfg.data_preprocessor
        )
    model = MODELS.build(ConfigDict(cfg))
    model.init_weights()
    return model


def both():
    """Two labelled images, and two others without labels, as a sampler mixes them."""
    torch.manual_seed(1)
    labelled, unlabelled = batch(), batch(((48, 64), (64, 32)))
    for sample in unlabelled['data_samples']:
        sample.gt_instances = InstanceData()
    mixed = {
        key: dict(
            sup=[*labelled[key], None, None], unsup=[None, None, *unlabelled[key]]
        )
        for key in ('inputs', 'data_samples')
    }
    return mixed, labelled, unlabelled


def parted(losses):
    """Losses of the labelled images, and of those without labels."""
    unsup = {k: v for k, v in losses.items() if k.startswith('unsup_')}
    return {k: v for k, v in losses.items() if k not in unsup}, unsup


def values(losses):
    return {
        k: v.tolist() if isinstance(v, torch.Tensor) else torch.stack(v).tolist()
        for k, v in losses.items()
    }


def test_labelled_images_have_the_losses_of_a_batch_of_their_own():
    mixed, labelled, _ = both()
    torch.manual_seed(2)
    sup, unsup = parted(losses_of(build(), mixed))
    torch.manual_seed(2)
    alone = losses_of(build(mixed=False), labelled)
    assert values(sup) == values(alone)
    assert set(unsup) == {
        'unsup_loss_lfi_attention',
        'unsup_loss_lfi_relation',
        'unsup_loss_lfi_dynamics',
    }


def test_unlabelled_images_have_the_losses_of_a_pretraining():
    mixed, _, unlabelled = both()
    _, unsup = parted(losses_of(build(), mixed))
    model = build(mixed=False)
    data = model.data_preprocessor(unlabelled, training=True)
    alone = model.distil(data['inputs'], data['data_samples'])
    assert values(unsup) == {f'unsup_{k}': v for k, v in values(alone).items()}


def test_unlabelled_images_reach_the_backbone_but_no_head():
    model = build()
    _, unsup = parted(losses_of(model, both()[0]))
    total(unsup).backward()
    reached = {
        n.split('.')[0] for n, p in model.named_parameters() if p.grad is not None
    }
    assert reached == {'backbone'}
    assert all(p.grad.abs().sum() > 0 for p in model.backbone.blocks[0].parameters())


@pytest.mark.parametrize('sup_weight', [0.0, 1.0])
@pytest.mark.parametrize('feedback', [True, False])
def test_every_trainable_parameter_gets_a_gradient(sup_weight, feedback):
    backbone = dict(detector_cfg()['backbone'], feedback=feedback)
    model = build(backbone=backbone, sup_weight=sup_weight)
    total(losses_of(model, both()[0])).backward()
    lost = [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert lost == []


def test_a_competitor_learns_from_both_branches_too():
    fitnet = dict(type='FeatureDistiller', losses=dict(fitnet=dict(type='FitNetLoss')))
    backbone = dict(detector_cfg()['backbone'], num_queries=0)
    model = build(distiller=fitnet, backbone=backbone)
    losses = losses_of(model, both()[0])
    assert {'loss_kd_fitnet', 'unsup_loss_kd_fitnet'} <= set(losses)
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_weights_scale_the_distillation_of_their_branch():
    mixed = both()[0]

    def with_weights(**weights):
        torch.manual_seed(2)
        return values(losses_of(build(**weights), mixed))

    one, other = with_weights(), with_weights(sup_weight=2.0, unsup_weight=3.0)
    for name, value in one.items():
        factor = 3 if name.startswith('unsup_') else 2 if '_lfi_' in name else 1
        assert other[name] == pytest.approx(
            [factor * v for v in value] if isinstance(value, list) else factor * value
        )


@pytest.mark.parametrize('several', [False, True])
def test_labels_may_say_what_labelled_images_show_and_only_these(several):
    def inside(**changes):
        teacher = dict(TEACHER, **changes)
        return dict(type='EnsembleTeacher', teachers=[teacher]) if several else teacher

    mixed, labelled, _ = both()
    torch.manual_seed(2)
    model = build(teacher=inside(), sup_labels=True)
    sup, unsup = parted(losses_of(model, mixed))
    torch.manual_seed(2)
    by_rule = parted(losses_of(build(teacher=inside()), mixed))
    torch.manual_seed(2)
    by_labels = build(mixed=False, teacher=inside(present='ground_truth'))
    assert values(sup) == values(losses_of(by_labels, labelled)) != values(by_rule[0])
    assert values(unsup) == values(by_rule[1])
    # and on a batch of labelled images alone
    torch.manual_seed(2)
    plain = build(mixed=False, teacher=inside(), sup_labels=True)
    assert values(losses_of(plain, labelled)) == values(sup)


def test_stored_targets_cannot_be_asked_by_labels(tmp_path):
    cached = dict(type='CachedTeacher', store=write_store(tmp_path, {1: some_record()}))
    with pytest.raises(ValueError, match='sup_labels=True does not go with CachedT'):
        build(teacher=cached, sup_labels=True)


def test_labelled_images_may_be_spared_the_teacher():
    model = build(sup_weight=0.0)
    sup, unsup = parted(losses_of(model, both()[0]))
    assert len(model.teacher.seen) == 1 and len(unsup) == 3
    assert not any('lfi' in name for name in sup)


def test_without_a_teacher_unlabelled_images_are_left_alone():
    mixed, labelled, _ = both()
    torch.manual_seed(2)
    losses = losses_of(build(teacher=None), mixed)
    torch.manual_seed(2)
    assert values(losses) == values(
        losses_of(build(mixed=False, teacher=None), labelled)
    )


def test_prediction_takes_plain_batches():
    model = build().eval()
    with torch.no_grad():
        results = model.test_step(batch())
        plain = build(mixed=False).eval().test_step(batch())
    assert len(results) == len(plain) == 2


def test_the_teacher_sees_the_pixels_of_both_branches_in_its_own_normalisation():
    model = build()
    mixed = both()[0]
    for name in ('sup', 'unsup'):
        for image in mixed['inputs'][name]:
            if image is not None:
                image[:] = torch.tensor((10, 60, 200)).view(3, 1, 1)  # BGR
    losses_of(model, mixed)
    view = model.teacher.view
    for seen in model.teacher.seen:
        rgb = (seen * view.std + view.mean).mean((0, 2, 3)) * 255
        torch.testing.assert_close(rgb, torch.tensor([200.0, 60, 10]), atol=1, rtol=0)


def test_a_rule_that_needs_labels_is_refused_with_the_choices():
    model = build(teacher=dict(TEACHER, present='ground_truth'))
    with pytest.raises(ValueError, match="has no labels, which teacher.present='groun"):
        losses_of(model, both()[0])


def test_other_branches_and_weights_out_of_range_are_refused():
    mixed = both()[0]
    for key in mixed:
        mixed[key]['unsup_student'] = mixed[key].pop('unsup')
    with pytest.raises(ValueError, match=r"branches \['sup', 'unsup_student'\]"):
        losses_of(build(), copy.deepcopy(mixed))
    with pytest.raises(ValueError, match='model.sup_weight=-1 is less than 0'):
        build(sup_weight=-1)
    with pytest.raises(ValueError, match='model.unsup_weight=0 is not more than 0'):
        build(unsup_weight=0)
