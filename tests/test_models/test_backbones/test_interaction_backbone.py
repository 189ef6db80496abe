"""Queries beside backbones that have none."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from lfi_mmdet.models.backbones.interaction_backbone import to_grid

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
    names = model.freeze_unreached(0, None, last_output=-1, first_output=1)
    assert ('interaction_out.0.weight' in names) == feedback
    assert ('interaction_in.1.weight' in names) != feedback
    alone = make(feedback=feedback)
    with pytest.raises(ValueError, match='output 0 of 4: leave out the others'):
        alone.freeze_unreached(0, None, last_output=None)
    with pytest.raises(ValueError, match='no loss reaches the backbone'):
        alone.freeze_unreached(None, None, last_output=None)
    with pytest.raises(ValueError, match='output 4: the backbone has 4'):
        alone.freeze_unreached(0, None, last_output=4)


@pytest.mark.parametrize('feedback', [False, True])
def test_a_pre_training_leaves_no_parameter_without_gradient(feedback):
    model = make(feedback=feedback)
    model.train()
    model.freeze_unreached(3, None, last_output=None)
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
    assert to_grid(x, 16, 16, (1, 2)) is x


# -- weights ---------------------------------------------------------------------------
def test_weights_of_a_file_are_kept(tmp_path):
    source = make()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'a.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    for model in (make(init_cfg=init), make(inner=dict(init_cfg=init))):
        for name, value in source.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_queries_start_from_the_texts_of_a_file(tmp_path):
    texts = F.normalize(torch.randn(3, 8), dim=1)
    torch.save(texts, tmp_path / 'texts.pth')
    model = make(text_embeddings=str(tmp_path / 'texts.pth'))
    cosines = F.normalize(model.queries, dim=1) @ F.normalize(model.queries, dim=1).T
    torch.testing.assert_close(cosines.detach(), texts @ texts.T, atol=1e-4, rtol=0)
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
        return (self.net(x).mean((2, 3)),) if self.out == 'vector' else (self.net(x),)


@pytest.mark.parametrize(
    'settings, error, message',
    [
        (dict(backbone=dict(type='VectorBackbone', out='vector')), ValueError,
         r'InteractionVectorBackbone: .* returns \[\(1, 4\)\], .* give backbone.ch'),
        (dict(backbone=dict(type='VectorBackbone', out='fails')), ValueError,
         r'strides of its outputs are not known.*wants 224 pixels\); give'),
        (dict(backbone=dict(type='VectorBackbone'), channels=[4], strides=[8, 8]),
         ValueError, r'channels=\[4\] and backbone.strides=\[8, 8\] differ in number'),
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
