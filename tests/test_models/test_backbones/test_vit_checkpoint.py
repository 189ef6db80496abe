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


def test_positions_of_another_image_size_are_resized_and_said_so(
    tmp_path, deit, monkeypatch
):
    lines = []
    MMLogger.get_instance('mmengine')
    monkeypatch.setattr(
        'lfi_mmdet.models.utils.vit_checkpoint.print_log',
        lambda text, **_: lines.append(text),
    )
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
    source = make_vit('')
    source.init_cfg = None
    source.init_weights()
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'detector.pth')
    model = make_vit(tmp_path / 'detector.pth')
    model.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


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
