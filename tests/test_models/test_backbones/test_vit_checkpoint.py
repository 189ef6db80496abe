"""Published ViT weights are loaded completely, or refused."""

from collections import OrderedDict

import pytest
import timm
import torch
from mmengine.logging import MMLogger
from timm.models.vision_transformer import VisionTransformer

from lfi_mmdet.models.backbones import InteractionViT

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3)


def make_vit(checkpoint, **kwargs) -> InteractionViT:
    cfg = dict(
        arch=ARCH, pretrain_img_size=32, patch_size=8, global_layers=(1,),
        interaction_layers=(0, 1), num_queries=2,
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)),
    )  # fmt: skip
    return InteractionViT(**{**cfg, **kwargs})


@pytest.fixture
def deit() -> VisionTransformer:
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=10
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def to_mmpretrain(state: dict) -> dict:
    """Rename as mmpretrain's VisionTransformer inside a classifier."""
    renames = [
        ('blocks.', 'layers.'), ('patch_embed.proj.', 'patch_embed.projection.'),
        ('.norm', '.ln'), ('mlp.fc1', 'ffn.layers.0.0'), ('mlp.fc2', 'ffn.layers.1'),
    ]  # fmt: skip
    renamed = OrderedDict()
    for key, value in state.items():
        for old, new in renames:
            key = key.replace(old, new)
        renamed['backbone.' + key] = value
    return renamed


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: dict(model=s),
        lambda s: dict(state_dict=to_mmpretrain(s)),
        lambda s: {f'module.backbone.net.{k}': v for k, v in s.items()},
    ],
    ids=['timm', 'deit and mae', 'mmpretrain', 'detector'],
)
def test_every_weight_of_a_known_layout_arrives(tmp_path, deit, wrap):
    torch.save(wrap(deit.state_dict()), tmp_path / 'vit.pth')
    model = make_vit(tmp_path / 'vit.pth')
    model.init_weights()
    theirs = deit.state_dict()
    for name, value in model.state_dict().items():
        if name == 'pos_embed':
            assert torch.equal(value, theirs['pos_embed'][:, 1:])
        elif not name.startswith(('interaction', 'queries')):
            assert torch.equal(value, theirs[name]), name


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What is logged."""
    lines = []
    MMLogger.get_instance('mmengine')
    monkeypatch.setattr(
        'lfi_mmdet.models.utils.vit_checkpoint.print_log',
        lambda text, **_: lines.append(text),
    )
    return lines


def test_positions_of_another_image_size_are_resized_and_said_so(tmp_path, deit, lines):
    torch.save(dict(deit.state_dict(), strange=torch.ones(1)), tmp_path / 'vit.pth')
    model = make_vit(tmp_path / 'vit.pth', pretrain_img_size=64)
    model.init_weights()
    assert model.pos_embed.shape == (1, 64, 24)
    (line,) = lines
    assert 'resized: pos_embed (1, 17, 24) -> (1, 64, 24)' in line
    assert 'queries' in line.split('start values kept')[1]
    assert line.endswith('unexpected: strange')


def test_relative_positions_of_another_size_are_resized(tmp_path):
    rel = dict(use_rel_pos=True, window_size=2)
    source = make_vit('', **rel)
    source.init_cfg = None
    source.init_weights()
    torch.nn.init.normal_(source.blocks[0].attn.rel_pos_h)
    torch.save(source.state_dict(), tmp_path / 'vit.pth')
    model = make_vit(tmp_path / 'vit.pth', use_rel_pos=True, window_size=4)
    model.init_weights()
    assert model.blocks[0].attn.rel_pos_h.shape == (7, 8)
    assert model.blocks[0].attn.rel_pos_h.abs().sum() > 0


def test_its_own_checkpoints_bring_the_queries_along(tmp_path):
    state = save_own(tmp_path / 'detector.pth')
    model = make_vit(tmp_path / 'detector.pth')
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(state[f'backbone.{name}'], value), name


def save_own(path, config='', **kwargs) -> dict:
    """Write what a training writes, with the text of its config or without."""
    source = make_vit('', **kwargs)
    source.init_cfg = None
    source.init_weights()
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(cfg=config)), path)
    return state


@pytest.mark.parametrize(
    'settings, said',
    [
        (
            dict(num_queries=0),
            'was trained with queries, but this backbone has none (num_queries=0): 22 '
            'tensors are left out, on whose feedback its blocks may count; set '
            'num_queries and interaction_layers as in that training',
        ),
        (
            dict(feedback=False),
            'was trained with feedback, but this backbone has none (feedback=False): 6 '
            'tensors are left out, on whose feedback its blocks may count; set '
            'feedback as in that training',
        ),
        (
            dict(query_attention=False, carry=False),
            'was trained with query_attention and carry, but this backbone has none '
            '(query_attention=False, carry=False): 6 tensors are left out; set '
            'query_attention and carry as in that training',
        ),
        (
            dict(interaction_layers=(1,)),
            'was trained with carry, but this backbone has none (a single interaction '
            'layer): 1 tensors are left out; set interaction_layers as in that '
            'training',
        ),
    ],
)
def test_what_the_backbone_has_no_place_for_is_named_with_its_setting(
    tmp_path, lines, settings, said
):
    save_own(tmp_path / 'own.pth')
    make_vit(tmp_path / 'own.pth', **settings).init_weights()
    assert lines[0] == f'{tmp_path / "own.pth"} {said}'


def test_queries_without_feedback_leave_no_block_counting_on_it(tmp_path, lines):
    save_own(tmp_path / 'own.pth', feedback=False)
    make_vit(tmp_path / 'own.pth', num_queries=0).init_weights()
    assert 'has none (num_queries=0): 16 tensors are left out; set' in lines[0]


LAYERS = 'model = dict(backbone=dict(num_queries=2, interaction_layers={}))'


def test_queries_of_other_interaction_layers_are_refused(tmp_path):
    save_own(tmp_path / 'own.pth', LAYERS.format('[-1]'), carry=False)
    model = make_vit(tmp_path / 'own.pth', carry=False)
    found = r'interaction_layers=\(1,\), but backbone.interaction_layers=\(0, 1\)'
    with pytest.raises(ValueError, match=found):
        model.init_weights()


@pytest.mark.parametrize(
    'config',
    [
        LAYERS.format('(-1, 0)'),
        'model = dict(backbone=dict(num_queries=0, interaction_layers=(1,)))',
        'model = dict(type="Other")',
        'model = dict(backbone=None)',
        'import os',
    ],
    ids=['same', 'no queries', 'no backbone', 'none', 'not plain'],
)
def test_layers_that_are_the_same_or_are_not_told_are_taken(tmp_path, config):
    state = save_own(tmp_path / 'own.pth', config)
    model = make_vit(tmp_path / 'own.pth')
    model.init_weights()
    assert torch.equal(model.queries, state['backbone.queries'])


def test_what_a_config_in_a_checkpoint_asks_for_is_not_imported(tmp_path):
    imports = "custom_imports = dict(imports=['no_such_module'])\nfilename = 1\n"
    save_own(tmp_path / 'own.pth', imports + LAYERS.format('(0, 1)'))
    make_vit(tmp_path / 'own.pth').init_weights()
    save_own(tmp_path / 'own.pth', imports + LAYERS.format('(1,)'), carry=False)
    with pytest.raises(ValueError, match='was trained with interaction_layers'):
        make_vit(tmp_path / 'own.pth', carry=False).init_weights()


def test_layers_do_not_matter_where_no_query_is_loaded(tmp_path):
    path = tmp_path / 'own.pth'
    state = save_own(path, LAYERS.format('(1,)'))
    blocks = {k: v for k, v in state.items() if 'quer' not in k and 'inter' not in k}
    torch.save(dict(state_dict=blocks, meta=torch.load(path)['meta']), path)
    make_vit(path).init_weights()


def test_a_plain_vit_takes_the_blocks_of_any_interaction_layers(tmp_path):
    save_own(tmp_path / 'own.pth', LAYERS.format('(1,)'))
    make_vit(tmp_path / 'own.pth', num_queries=0).init_weights()


def test_layers_that_a_config_leaves_out_are_the_default_ones(tmp_path):
    config = LAYERS.partition(', inter')[0] + '))'
    deep = dict(arch=dict(ARCH, num_layers=12), interaction_layers=(0, 1))
    save_own(tmp_path / 'own.pth', config, **deep)
    with pytest.raises(
        ValueError, match=r'trained with interaction_layers=\(2, 5, 8, 11\)'
    ):
        make_vit(tmp_path / 'own.pth', **deep).init_weights()


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(embed_dim=48), r'another ViT.*\(48.*instead of'),
        (dict(depth=3), 'blocks.2.* left over'),
        (dict(depth=1), 'blocks.1.* missing'),
    ],
)
def test_a_checkpoint_of_another_size_is_refused(tmp_path, change, message):
    args = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    torch.save(VisionTransformer(**{**args, **change}).state_dict(), tmp_path / 'v.pth')
    model = make_vit(tmp_path / 'v.pth')
    with pytest.raises(ValueError, match=message):
        model.init_weights()


def test_a_checkpoint_of_which_nothing_matches_is_refused(tmp_path):
    torch.save({'conv1.weight': torch.ones(1)}, tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match=r'no weight matches.*conv1\.weight'):
        make_vit(tmp_path / 'resnet.pth').init_weights()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        make_vit(tmp_path / 'nowhere.pth').init_weights()


def test_deits_published_names_fit_deit_tiny():
    theirs = timm.create_model('deit_tiny_patch16_224', pretrained=False).state_dict()
    ours = InteractionViT('deit-tiny').state_dict()
    assert set(ours) <= set(theirs)
    assert all(v.shape == theirs[k].shape for k, v in ours.items() if k != 'pos_embed')
