"""A CoCa that learns from captions, and what it teaches afterwards."""

import json

import pytest
import torch
from mmdet.registry import MODELS

from lfi_mmdet.models.losses.noun_presence import noun_logits

NOUNS = ('circle', 'star', 'ring')
CAPTIONS = ['A red circle.', 'Two stars and a circle.', 'There is a ring.', 'A star.']


@pytest.fixture
def tiny_coca(tmp_path):
    """A folder with a CoCa of two blocks; its decoder attends to patches."""

    def write(name='coca_captions', **changes):
        vision = dict(
            image_size=32, patch_size=8, width=32, layers=2, head_width=16,
            pool_type='avg', output_tokens=True,
        )  # fmt: skip
        text = dict(
            context_length=15, vocab_size=49408, width=32, heads=2, layers=1,
            embed_cls=True, output_tokens=True,
        )  # fmt: skip
        decoder = dict(context_length=15, vocab_size=49408, width=32, heads=2, layers=1)
        config = dict(
            embed_dim=32, init_logit_bias=-5.0, custom_text=True, vision_cfg=vision,
            text_cfg=text, multimodal_cfg=decoder,
        )  # fmt: skip
        (tmp_path / f'{name}.json').write_text(json.dumps(config | changes))
        return dict(model=name, model_configs=str(tmp_path))

    return write


def pretrainer(model, **changes):
    return MODELS.build(
        dict(type='CaptionPretrainer', nouns=NOUNS, layers='all', **model, **changes)
    )


def images(count=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=generator).byte()


def test_every_parameter_learns(tiny_coca):
    model = pretrainer(tiny_coca()).train()
    losses = model(images(), CAPTIONS)
    assert set(losses) == {'loss_nouns', 'loss_caption', 'loss_contrastive'}
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None]
    assert not idle


def test_captions_say_which_nouns_are_there_and_nothing_else_is_asked_for(tiny_coca):
    model = pretrainer(tiny_coca())
    expected = [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert model.named(CAPTIONS).int().tolist() == expected


def test_a_few_steps_lower_every_loss(tiny_coca):
    torch.manual_seed(0)
    model = pretrainer(tiny_coca(), caption_share=1.0).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    history = []
    for _ in range(30):
        losses = model(images(), CAPTIONS)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in history[0]:
        assert history[-1][name] < 0.9 * history[0][name]


def test_the_noun_loss_trains_what_the_similarity_reading_shows(tiny_coca, tmp_path):
    coca = tiny_coca()
    model = pretrainer(coca, template='a {}.').eval()
    file = tmp_path / 'weights.pt'
    torch.save(model.network.state_dict(), file)
    teacher = MODELS.build(
        dict(
            type='CoCaTeacher', reading='similarity', layers='all', present='all',
            temperature=0.1, template='a {}.', class_names=NOUNS,
            pretrained=str(file), **coca,
        )
    )  # fmt: skip
    normed = (images().float() - model.mean) / model.std
    targets = teacher.interact(normed, torch.ones(4, 3, dtype=torch.bool))
    asked = {}

    def keep(cosines, scale, bias):
        asked['logits'] = noun_logits(cosines, torch.tensor(10.0), torch.tensor(0.0))
        return asked['logits']

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'lfi_mmdet.models.pretrainers.caption_pretrainer.noun_logits', keep
        )
        model(images(), CAPTIONS)
    difference = targets.log_mass - asked['logits']
    assert torch.allclose(
        difference, difference.mean().expand_as(difference), atol=1e-4
    )


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(layers=(0,)), 'lacks the last block, 1'),
        (dict(caption_share=0.0), 'caption_share=0.0'),
    ],
)
def test_bad_choices_are_named(tiny_coca, changes, words):
    settings = dict(layers='all') | changes
    with pytest.raises(ValueError, match=words):
        MODELS.build(
            dict(type='CaptionPretrainer', nouns=NOUNS, **tiny_coca(), **settings)
        )


def test_a_model_without_bias_cannot_say_that_something_is_absent(tiny_coca):
    coca = tiny_coca('coca_unbiased', init_logit_bias=None)
    with pytest.raises(ValueError, match='init_logit_bias'):
        pretrainer(coca)
