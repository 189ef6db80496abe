"""EVA-CLIP and SigLIP: towers of timm inside open_clip models."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lfi_mmdet.models.teachers import CLIPTeacher, SigLIPTeacher
from lfi_mmdet.models.teachers.open_clip_loader import load_tokenizer

from .tiny_open_clip import CLASSES, GRID, some_images

EVERY = torch.ones(2, 3, dtype=torch.bool)


def teacher_of(name: str, **changes):
    kind = SigLIPTeacher if name == 'tiny-sigmoid' else CLIPTeacher
    torch.manual_seed(0)
    return kind(model=name, class_names=CLASSES, **changes)


def sharpen(teacher) -> None:
    """Random towers of timm hardly tell patches apart; these do."""
    torch.manual_seed(1)
    for name, value in teacher.network.visual.named_parameters():
        if value.ndim > 1 and 'pos_embed' not in name:
            value.data.normal_(std=value.shape[-1] ** -0.5)
        elif name.endswith('q_bias') or name.endswith('q_proj.bias'):
            value.data.normal_()
        elif 'gamma' in name:  # alike, they would vanish in the norm that follows
            value.data.uniform_(0.2, 1.5)


@torch.no_grad()
def block_inputs(trunk, images):
    """What enters the last block, and its rotary positions."""
    seen = {}

    def keep(module, args, kwargs):
        seen.update(x=args[0], rope=kwargs.get('rope'))

    handle = trunk.blocks[-1].register_forward_pre_hook(keep, with_kwargs=True)
    trunk.forward_features(images)
    handle.remove()
    return seen['x'], seen['rope']


@torch.no_grad()
def last_block(trunk, images, mode):
    x, rope = block_inputs(trunk, images)
    block = trunk.blocks[-1]
    extra = {} if rope is None else dict(rope=rope)
    if mode == 'last':
        return block(x, **extra)
    if mode == 'value':  # one token at a time has only itself to look at
        flat = x.flatten(0, 1)[:, None]
        return block(flat).view_as(x)
    attn = copy.deepcopy(block.attn)
    if attn.qkv is None:
        attn.k_proj = attn.q_proj
    else:
        weight = attn.qkv.weight.data
        weight[32:64] = weight[:32]
        if getattr(attn, 'k_bias', None) is not None:
            attn.k_bias = attn.q_bias.data
        elif attn.qkv.bias is not None:
            attn.qkv.bias.data[32:64] = attn.qkv.bias.data[:32]
    y = attn(block.norm1(x), **extra)
    if hasattr(block, 'ls1'):
        return block.ls1(y)
    return block.gamma_1 * y if getattr(block, 'gamma_1', None) is not None else y


@pytest.mark.parametrize('name', ['tiny-eva', 'tiny-eva-fused', 'tiny-eva-mean'])
@pytest.mark.parametrize('mode', CLIPTeacher.MODES)
def test_patches_of_eva_are_projected_as_its_class_token_is(configs, name, mode):
    teacher, images = teacher_of(name, mode=mode), some_images()
    sharpen(teacher)
    trunk = teacher.network.visual.trunk
    patches = trunk.norm(last_block(trunk, images, mode))[:, 1:]
    projected = trunk.head(trunk.fc_norm(patches))
    targets = teacher.interact(images, EVERY)
    cosines = F.cosine_similarity(
        teacher.texts['embeds'][None, :, None], projected[:, None], dim=-1
    )
    maps = (cosines / 0.07).softmax(-1)
    assert targets.maps.shape == (2, 1, 3, *GRID)
    got = targets.maps[:, 0].flatten(-2)
    torch.testing.assert_close(got, maps, atol=1e-5, rtol=1e-3)
    assert maps.std(-1).min() > 1e-3  # else anything would pass


@pytest.mark.parametrize('mode', CLIPTeacher.MODES)
def test_patches_of_siglip_pass_the_pooler_alone(configs, mode):
    teacher, images = teacher_of('tiny-sigmoid', mode=mode), some_images()
    sharpen(teacher)
    trunk = teacher.network.visual.trunk
    pool = trunk.attn_pool
    tokens = trunk.norm(last_block(trunk, images, mode))
    value = pool.kv(tokens)[..., 32:]
    pooled = pool.proj(value)
    projected = pooled + pool.mlp(pool.norm(pooled))
    cosines = F.cosine_similarity(
        teacher.texts['embeds'][None, :, None], projected[:, None], dim=-1
    )
    network = teacher.network
    weights = torch.sigmoid(cosines * network.logit_scale.exp() + network.logit_bias)
    targets = teacher.interact(images, EVERY)
    maps = weights / weights.sum(-1, keepdim=True)
    got = targets.maps[:, 0].flatten(-2)
    torch.testing.assert_close(got, maps, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        targets.log_mass[:, 0], weights.sum(-1).log(), atol=1e-4, rtol=1e-4
    )
    assert maps.std(-1).min() > 1e-3


def test_siglip_scores_each_text_on_its_own(configs):
    teacher, images = teacher_of('tiny-sigmoid', present='teacher'), some_images()
    teacher.network.logit_bias.data.fill_(0.0)
    network = teacher.network
    image = F.normalize(network.encode_image(images), dim=-1)
    logits = image @ teacher.texts['embeds'].T * network.logit_scale.exp()
    scores = teacher.interact(images, None).scores
    torch.testing.assert_close(scores, torch.sigmoid(logits), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores.sum(1), torch.ones(2))  # no softmax


def test_siglip_takes_another_temperature_and_refuses_models_without_a_bias(configs):
    sharp, soft = (
        teacher_of('tiny-sigmoid', temperature=t).interact(some_images(), EVERY).maps
        for t in (None, 1.0)
    )
    assert sharp.std() > soft.std()
    with pytest.raises(ValueError, match="'tiny-clip' has no logit bias.*CLIPTeacher"):
        SigLIPTeacher('tiny-clip', class_names=CLASSES)


def test_every_block_of_a_timm_tower_can_be_read(configs):
    teacher = teacher_of('tiny-eva', layers='all')
    assert (teacher.num_layers, teacher.feature_dims) == (3, 24)
    assert teacher.layer_names == ['0', '1', '2']
    targets = teacher.interact(some_images(), EVERY)
    torch.testing.assert_close(targets.maps.sum((-2, -1)), torch.ones(2, 3, 3))
    assert (targets.maps[:, 0] - targets.maps[:, 1]).abs().max() > 1e-4


@pytest.fixture
def tokenizer_folder(tmp_path):
    tokenizers = pytest.importorskip('tokenizers')
    transformers = pytest.importorskip('transformers')
    words = ['[PAD]', '[UNK]', 'this', 'is', 'a', 'photo', 'of', 'cat', 'zebra']
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token='[UNK]')
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token='[PAD]', unk_token='[UNK]'
    ).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_tokenizer_is_taken_from_a_folder(configs, tokenizer_folder):
    teacher = teacher_of('tiny-sigmoid', tokenizer=tokenizer_folder)
    tokens = teacher.tokenizer(['this is a cat'])[0].tolist()
    assert tokens == [2, 3, 4, 7] + [0] * 12  # the model's context length


def test_a_tokenizer_from_a_folder_cleans_texts_as_the_models_own_does(
    tokenizer_folder,
):
    tokenizer = load_tokenizer('ViT-B-16-SigLIP', folder=tokenizer_folder)
    tokens = tokenizer(['This is a CAT!'])[0].tolist()
    assert tokens == [2, 3, 4, 7] + [0] * 60


def test_a_tokenizer_that_cannot_be_downloaded_is_named_with_the_way_out(configs):
    import open_clip

    config = open_clip.get_model_config('tiny-sigmoid')
    text = dict(config['text_cfg'], hf_tokenizer_name='/no/such/tokenizer')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            open_clip.factory,
            'get_model_config',
            lambda name: dict(config, text_cfg=text),
        )
        patch.setattr(
            open_clip, 'get_model_config', lambda name: dict(config, text_cfg=text)
        )
        with pytest.raises(
            RuntimeError, match='/no/such/tokenizer.*teacher.tokenizer='
        ):
            teacher_of('tiny-sigmoid')


def test_a_pooler_with_positions_of_its_own_is_refused(configs):
    from lfi_mmdet.models.teachers.towers import TimmTower

    visual = teacher_of('tiny-sigmoid').network.visual
    visual.trunk.attn_pool.pos_embed = nn.Parameter(torch.zeros(16, 32))
    with pytest.raises(ValueError, match='pools with positions of its own'):
        TimmTower(visual, 'tiny-sigmoid')


def test_a_tower_without_a_patch_grid_is_refused(configs):
    class Trunk(nn.Module):
        pass

    from lfi_mmdet.models.teachers.towers import TimmTower

    visual = nn.Module()
    visual.trunk = Trunk()
    with pytest.raises(ValueError, match="'convnext' has the image tower Trunk"):
        TimmTower(visual, 'convnext')
