"""LFI without labels: what the model promises; see test_unlabelled_runs for runs."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from tests.tiny import CLASSES
from tests.unlabelled import TinyConvTeacher  # noqa: F401

LOSSES = dict(
    attention=dict(type='InteractionAttentionLoss'),
    dynamics=dict(type='InteractionDynamicsLoss'),
)
TEACHER = dict(type='TinyConvTeacher', present='all')
KD = dict(type='FeatureDistiller', losses=dict(fitnet=dict(type='FitNetLoss')))


def build(teacher=None, distiller=None, init=True, **backbone):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='InteractionPretrainer',
            data_preprocessor=dict(
                type='DetDataPreprocessor', mean=[100.0] * 3, std=[50.0] * 3,
                bgr_to_rgb=True, pad_size_divisor=16,
            ),
            backbone=dict(
                dict(
                    type='InteractionViT', window_size=0, global_layers=(0,),
                    arch=dict(embed_dims=16, num_layers=4, num_heads=2),
                    pretrain_img_size=32, patch_size=8, num_queries=3,
                    interaction_layers=(0, 1, 3),
                ),
                **backbone,
            ),
            teacher=dict(
                dict(TEACHER, class_names=CLASSES), **(teacher or {})
            ),
            distiller=distiller or dict(type='InteractionDistiller', losses=LOSSES),
        )
    )  # fmt: skip
    if init:
        model.init_weights()
    return model


def batch(labels=False):
    """Two images as a data loader gives them; without labels, or with one each."""
    inputs, samples = [], []
    for i, (h, w) in enumerate(((32, 24), (24, 32))):
        inputs.append(torch.randint(0, 255, (3, h, w), dtype=torch.uint8))
        sample = DetDataSample(metainfo=dict(img_shape=(h, w), img_path=f'{i}.png'))
        sample.gt_instances = InstanceData()
        if labels:
            sample.gt_instances.labels = torch.tensor([i])
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def losses_of(model, data=None):
    data = copy.deepcopy(data or batch())
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def without_gradient(model):
    torch.stack(list(losses_of(model).values())).sum().backward()
    return [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ]


def frozen(model):
    return {n for n, p in model.backbone.named_parameters() if not p.requires_grad}


def test_images_without_labels_give_the_losses_of_the_distiller():
    losses = losses_of(build())
    assert set(losses) == {'loss_lfi_attention', 'loss_lfi_dynamics'}
    assert all(loss > 0 for loss in losses.values())


def test_labels_change_nothing_unless_they_say_what_is_present():
    torch.manual_seed(3)
    data = batch(labels=True)
    unlabelled = copy.deepcopy(data)
    for sample in unlabelled['data_samples']:
        sample.gt_instances = InstanceData()
    model = build()
    assert losses_of(model, data) == losses_of(model, unlabelled)
    asks = build(dict(present='ground_truth'))
    assert losses_of(asks, data) != losses_of(model, data)


def test_a_teacher_that_needs_labels_says_what_to_choose_instead():
    model = build(dict(present='ground_truth'))
    with pytest.raises(ValueError, match=r'0.png has no labels.*present=.teacher'):
        losses_of(model)


@pytest.mark.parametrize(
    'distiller',
    [
        dict(type='InteractionDistiller', losses=LOSSES),
        dict(
            type='InteractionDistiller',
            losses=dict(attention=LOSSES['attention']),
            layer_mapping='last',
        ),
        dict(
            type='InteractionDistiller',
            losses=dict(feature=dict(type='InteractionFeatureLoss')),
        ),
        KD,
    ],
    ids=['maps', 'last layer', 'queries', 'outputs'],
)
@pytest.mark.parametrize('feedback', [True, False])
@pytest.mark.parametrize('layers', [(0, 1, 3), (0, 2), (1,)])
@pytest.mark.parametrize('active', [True, False])
def test_every_trainable_parameter_gets_a_gradient(distiller, feedback, layers, active):
    if len(layers) == 1 and 'dynamics' in distiller['losses']:
        pytest.skip('nothing develops in one layer')
    model = build(distiller=distiller, feedback=feedback, interaction_layers=layers)
    if not active:
        model.distiller.schedule.current = lambda: 0.0
    assert without_gradient(model) == []


def test_what_comes_after_the_last_supervised_layer_is_frozen():
    model = build(interaction_layers=(0, 1))
    blocks = {name.split('.')[1] for name in frozen(model) if name.startswith('blocks')}
    assert blocks == {'2', '3'}
    assert not any(
        name.startswith(('interaction', 'queries')) for name in frozen(model)
    )
    only = build(
        interaction_layers=(2,),
        distiller=dict(
            type='InteractionDistiller', losses=dict(attention=LOSSES['attention'])
        ),
    )
    inside = {n.split('.')[1] for n in frozen(only) if n.startswith('interaction')}
    assert inside == {'feedback', 'gamma', 'read_value', 'read_out', 'relation'}


def test_a_distiller_of_outputs_trains_all_blocks_up_to_the_one_it_looks_at():
    assert frozen(build(distiller=KD, num_queries=0)) == set()
    model = build(distiller=dict(KD, output=0), num_queries=0, out_layers=(1, 3))
    assert {name.split('.')[1] for name in frozen(model)} == {'2', '3'}


def test_the_teacher_is_frozen_shared_by_copies_and_in_no_list():
    model = build().train()
    teacher = model.teacher.network
    assert not any(m.training for m in teacher.modules())
    assert not any('teacher' in name for name in model.state_dict())
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in teacher.parameters()}
    assert copy.deepcopy(model).teacher is model.teacher
    model.half()
    assert {p.dtype for p in teacher.parameters()} == {torch.float16}


def test_init_weights_notices_a_teacher_that_was_touched():
    model = build(init=False)
    next(model.teacher.network.parameters()).data += 1
    with pytest.raises(RuntimeError, match='weights of TinyConvTeacher changed'):
        model.init_weights()


def test_impossible_models_are_refused_when_built():
    cfg = dict(type='InteractionPretrainer', backbone={}, teacher=None, distiller={})
    with pytest.raises(ValueError, match=r'model.teacher is None: without labels'):
        MODELS.build(cfg)
    with pytest.raises(ValueError, match='backbone.num_queries=0'):
        build(num_queries=0)
    regions = dict(type='FeatureDistiller', losses=dict(vild=dict(type='ViLDLoss')))
    with pytest.raises(ValueError, match='regions, which need a detector'):
        build(distiller=regions)
    with pytest.raises(
        ValueError, match='distiller.output=4: the backbone has 1 outputs'
    ):
        build(distiller=dict(KD, output=4))


@pytest.mark.parametrize('mode', ['predict', 'tensor'])
def test_it_has_losses_and_nothing_else(mode):
    with pytest.raises(ValueError, match=f'{mode!r}; an InteractionPretrainer only'):
        build()(torch.zeros(1, 3, 32, 32), [], mode=mode)
