"""Queries beside backbones that have none."""

import copy
import pickle

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule, PretrainedInit
from torch import nn
from torch.nn import functional as F

from lfi_mmdet.models.utils import to_grid

BACKBONES = dict(
    resnet=dict(type='ResNet', depth=18, base_channels=8, init_cfg=None),
    swin=dict(
        type='SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 4), window_size=4, drop_path_rate=0.0,
    ),
    pvt=dict(
        type='PyramidVisionTransformerV2', embed_dims=8, num_layers=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4], drop_path_rate=0.0,
    ),
    convnext=dict(
        type='mmpretrain.ConvNeXt', out_indices=(0, 1, 2, 3),
        arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64]),
        gap_before_final_norm=False,
    ),
)  # fmt: skip
QUERIES = dict(num_queries=3, embed_dims=16, interaction_heads=2)


def make(name='resnet', **settings):
    if name == 'convnext':
        pytest.importorskip('mmpretrain').models  # noqa: B018 - registers it
    torch.manual_seed(0)
    backbone = dict(copy.deepcopy(BACKBONES[name]), **settings.pop('inner', {}))
    cfg = dict(type='InteractionBackbone', backbone=backbone)
    model = MODELS.build({**cfg, **QUERIES, **settings})
    model.init_weights()
    model.eval()  # that of mmdet's backbones returns nothing
    return model


def plain(name):
    model = MODELS.build(copy.deepcopy(BACKBONES[name]))
    model.eval()
    return model


@pytest.mark.parametrize('name', BACKBONES)
def test_without_feedback_the_outputs_are_those_of_the_backbone(name):
    model, alone = make(name), plain(name)
    own = model.state_dict()
    extra = set(own) - set(alone.state_dict())
    assert all(key.startswith(('queries', 'interaction')) for key in extra) and extra
    # the keys of weights for the backbone alone are its own
    result = model.load_state_dict(alone.state_dict(), strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) == extra
    assert isinstance(model, type(alone))
    x = torch.randn(2, 3, 64, 96)
    with model.interactions([(64, 96), (48, 64)]) as trace:
        outs = model(x)
    for ours, theirs in zip(outs, alone(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.output_strides == (4, 8, 16, 32)
    assert [out.shape[1] for out in outs] == list(model.output_dims)
    assert [tuple(z.shape) for z in trace.logits] == [(2, 2, 3, 24)] * 4
    assert [tuple(q.shape) for q in trace.queries] == [(2, 3, 16)] * 4
    assert trace.grid == (4, 6) and trace.valid.sum(1).tolist() == [24, 12]
    assert all(a is b for a, b in zip(trace.outputs, outs, strict=True))


@pytest.mark.parametrize('name', BACKBONES)
def test_every_parameter_of_the_interaction_learns(name):
    for feedback in (False, True):
        model = make(name, feedback=feedback)
        model.train()
        model.freeze_unreached(3, None)
        with model.interactions() as trace:
            outs = model(torch.randn(1, 3, 64, 64))
        total = sum(z.square().mean() for z in trace.logits)
        (total + sum(out.square().mean() for out in outs)).backward()
        lost = [
            n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert lost == []


@pytest.mark.parametrize('feedback', [False, True])
@pytest.mark.parametrize('name', BACKBONES)
def test_at_first_and_at_any_size_the_outputs_are_those_of_the_backbone(name, feedback):
    model, alone = make(name, feedback=feedback), plain(name)
    alone.load_state_dict({k: model.state_dict()[k] for k in alone.state_dict()})
    x = torch.randn(1, 3, 101, 107)
    with model.interactions([(101, 107)]) as trace:
        outs = model(x)
    for ours, theirs in zip(outs, alone(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert trace.grid == (7, 7)
    assert all(z.shape[-1] == 49 for z in trace.logits)


def test_with_feedback_the_queries_change_every_output():
    model = make(feedback=True, inner=dict(norm_eval=True))
    with torch.no_grad():
        model.interaction.gamma.fill_(1.0)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        model.queries.normal_()
        after = model(x)
    assert all((a - b).abs().max() > 1e-6 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize('feedback', [False, True])
def test_what_losses_do_not_reach_is_frozen(feedback):
    model = make(feedback=feedback)
    names = model.freeze_unreached(0, None, -1, read_outputs=[1, 3])
    outs = {f'interaction_out.{i}.weight' for i in (0, 2)} if feedback else set()
    assert {n for n in names if n.startswith('interaction_out')} == outs
    # those of stages whose queries nobody needs
    assert ('interaction_in.1.weight' in names) != feedback
    alone = make(feedback=feedback)
    with pytest.raises(ValueError, match=r'outputs \[1, 2, 3\] of 4; leave them out'):
        alone.freeze_unreached(0, None, None, pretraining=True)
    with pytest.raises(ValueError, match=r'outputs \[0, 1, 2\] of 4; leave them out'):
        alone.freeze_unreached(None, None, -1, [-1], pretraining=True)
    with pytest.raises(ValueError, match='no loss reaches the backbone'):
        alone.freeze_unreached(None, None, None)
    with pytest.raises(ValueError, match='output 4: the backbone has 4'):
        alone.freeze_unreached(0, None, 4)


def test_nothing_is_trained_to_write_where_nobody_reads():
    model = make(feedback=True, stages=[0])
    names = model.freeze_unreached(0, None, -1, read_outputs=[1, 2, 3])
    assert {'interaction.gamma', 'interaction_out.0.weight'} <= set(names)
    with model.interactions() as trace:
        outs = model(torch.randn(1, 3, 64, 64))
    total = trace.logits[0].square().mean()
    (total + sum(out.square().mean() for out in outs[1:])).backward()
    own = {n: p for n, p in model.named_parameters() if n.startswith(('int', 'que'))}
    assert [n for n, p in own.items() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize('feedback', [False, True])
def test_a_pre_training_leaves_no_parameter_without_gradient(feedback):
    model = make(feedback=feedback)
    model.train()
    model.freeze_unreached(3, None, None, [], pretraining=True)
    with model.interactions() as trace:
        model(torch.randn(1, 3, 64, 64))
    sum(z.square().mean() for z in trace.logits).backward()
    own = {n: p for n, p in model.named_parameters() if n.startswith(('int', 'que'))}
    assert [n for n, p in own.items() if p.requires_grad and p.grad is None] == []
    assert any(not p.requires_grad for p in own.values()) == feedback


def test_chosen_outputs_are_read_in_their_order():
    model = make(stages=(-1, 1))
    assert model.interaction_stages == (1, 3)
    with model.interactions() as trace:
        model(torch.randn(1, 3, 64, 64))
    assert len(trace.logits) == 2
    assert model.interaction_spec.layers == (1, 3)


# -- one grid --------------------------------------------------------------------------
def test_finer_cells_are_averaged_also_where_the_border_cuts_a_cell():
    x = torch.arange(20.0).view(1, 1, 4, 5)
    cells = to_grid(x, 4, 8, (2, 3))
    expected = [[3.0, 5.0, 6.5], [13.0, 15.0, 16.5]]
    torch.testing.assert_close(cells[0, 0], torch.tensor(expected))


def test_coarser_cells_are_repeated_and_cut():
    x = torch.arange(2.0).view(1, 1, 1, 2)
    cells = to_grid(x, 32, 16, (2, 3))
    torch.testing.assert_close(cells[0, 0], torch.tensor([[0.0, 0, 1], [0, 0, 1]]))
    assert to_grid(x, 16, 16, (1, 2)).equal(x)


def test_cells_that_a_backbone_has_left_out_are_those_beside_them():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    expected = [[0.0, 1, 1], [2, 3, 3], [2, 3, 3]]
    torch.testing.assert_close(to_grid(x, 8, 8, (3, 3))[0, 0], torch.tensor(expected))


# -- weights ---------------------------------------------------------------------------
def trained(tmp_path, prefix='', **settings):
    """A file with weights that no start value has; the model it is of."""
    source = make(**settings)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    state = {f'{prefix}{key}': value for key, value in source.state_dict().items()}
    if prefix:
        state['neck.weight'] = torch.zeros(1)
    path = tmp_path / 'trained.pth'
    torch.save(dict(state_dict=state), path)
    return source, str(path)


def same(model, source):
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('name', BACKBONES)
def test_weights_of_a_file_with_queries_are_taken(tmp_path, name, prefix):
    source, path = trained(tmp_path, prefix, name=name, feedback=True)
    init = dict(type='Pretrained', checkpoint=path)
    forms = [
        init, [init], dict(init, type=PretrainedInit), dict(init, prefix='backbone.')
    ]  # fmt: skip
    for form in forms:
        same(make(name, feedback=True, inner=dict(init_cfg=form)), source)
    model = make(name, feedback=True, init_cfg=init)
    model.init_weights()  # once more changes nothing
    same(model, source)


def test_weights_of_the_backbone_alone_leave_the_queries_at_their_start(tmp_path):
    alone = plain('resnet')
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.normal_()
    torch.save(alone.state_dict(), tmp_path / 'alone.pth')
    for kind in ('Pretrained', PretrainedInit):
        init = dict(type=kind, checkpoint=str(tmp_path / 'alone.pth'))
        model = make(init_cfg=init)
        same(model, alone)
        assert 0 < model.queries.std() < 0.05
        # wide enough for logits that differ
        assert model.interaction_in[0].weight.std() > 0.1


def test_a_file_of_another_interaction_is_refused(tmp_path):
    _, path = trained(tmp_path)
    init = dict(type='Pretrained', checkpoint=path)
    with pytest.raises(ValueError, match=r'queries is \(3, 16\), here \(4, 16\)'):
        make(init_cfg=init, num_queries=4)
    with pytest.raises(ValueError, match='interaction.gamma is not in it'):
        make(init_cfg=init, feedback=True)


def test_a_pickle_is_the_same_backbone():
    model = make(feedback=True)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    same(again, model)
    same(copy.deepcopy(model), model)


def test_queries_start_from_the_texts_of_a_file(tmp_path):
    texts = F.normalize(torch.randn(3, 8), dim=1)
    torch.save(texts, tmp_path / 'texts.pth')
    model = make(text_embeddings=str(tmp_path / 'texts.pth'))
    cosines = F.normalize(model.queries, dim=1) @ F.normalize(model.queries, dim=1).T
    torch.testing.assert_close(cosines.detach(), texts @ texts.T, atol=1e-4, rtol=0)
    # a model for weights of a file needs no other one
    MODELS.build(
        dict(type='InteractionBackbone', backbone=BACKBONES['resnet'],
             text_embeddings='not/there.pth', **QUERIES)
    )  # fmt: skip
    with pytest.raises(ValueError, match='holds 3 texts, but num_queries=4'):
        make(text_embeddings=str(tmp_path / 'texts.pth'), num_queries=4)


# -- what cannot be --------------------------------------------------------------------
@MODELS.register_module()
class VectorBackbone(BaseModule):
    """Returns no feature map."""

    def __init__(self, out=None, init_cfg=None):
        super().__init__(init_cfg)
        self.net, self.out = nn.Conv2d(3, 4, 8, 8), out

    def forward(self, x):
        if self.out == 'fails':
            raise RuntimeError('wants 224 pixels')
        y = self.net(x)
        if self.out == 'tensor':
            return y
        kinds = dict(vector=y.mean((2, 3)), twice=torch.cat([y, y]))
        return (kinds.get(self.out, y),)


@pytest.mark.parametrize(
    'settings, error, message',
    [
        (dict(backbone=dict(type='VectorBackbone', out='vector')), ValueError,
         r'InteractionVectorBackbone: .* returns \[\(1, 4\)\], .* give backbone.ch'),
        (dict(backbone=dict(type='VectorBackbone', out='fails')), ValueError,
         r'strides of its outputs are not known.*wants 224 pixels\); give'),
        (dict(backbone=dict(type='VectorBackbone'), channels=[4], strides=[8, 8]),
         ValueError, r'channels=\[4\] and backbone.strides=\[8, 8\] differ in number'),
        (dict(backbone=dict(type='VectorBackbone'), strides=[8]), ValueError,
         r'channels=None and backbone.strides=\[8\]: give both'),
        (dict(backbone=dict(type='VectorBackbone'), grid_stride=12), ValueError,
         'grid_stride=12 is neither a multiple nor a divisor of the stride 8'),
        (dict(backbone=dict(type='Nobody')), KeyError, "backbone.type='Nobody' is not"),
        (dict(backbone=dict(type='InteractionViT')), TypeError, 'queries of its own'),
        (dict(backbone=dict(type='VectorBackbone'), num_queries=0), ValueError,
         'num_queries=0: InteractionBackbone without'),
    ],
)  # fmt: skip
def test_impossible_backbones_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        MODELS.build({'type': 'InteractionBackbone', **QUERIES, **settings})


def test_strides_that_are_given_are_not_tried_out():
    inner = dict(type='VectorBackbone', out='fails')
    cfg = dict(type='InteractionBackbone', backbone=inner, channels=[4], strides=[8])
    model = MODELS.build({**cfg, **QUERIES})
    assert model.output_strides == (8,) and model.output_dims == (4,)


@pytest.mark.parametrize(
    'out, channels, strides, message',
    [
        (None, [4], [4], r'output 0 is \(2, 4, 8, 8\) for images .* stride 4; see'),
        (None, [5], [8], 'does not go with 5 channels'),
        (None, [4, 4], [8, 8], 'returns 1, not 2 outputs'),
        ('tensor', [4], [8], 'returns Tensor, not 1 outputs'),
        ('twice', [4], [8], r'output 0 is \(4, 4, 8, 8\) for images \(2, 3, 64, 64\)'),
    ],
)
def test_outputs_that_are_not_as_told_are_named(out, channels, strides, message):
    inner = dict(type='VectorBackbone', out=out)
    cfg = dict(backbone=inner, channels=channels, strides=strides, grid_stride=8)
    model = MODELS.build({'type': 'InteractionBackbone', **QUERIES, **cfg})
    with model.interactions(), pytest.raises(ValueError, match=message):
        model(torch.zeros(2, 3, 64, 64))
