from __future__ import annotations

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('transformers', reason='the extra lfi_mmdet[blip]')

from lfi_mmdet.models.teachers import BLIPTeacher, blip  # noqa: E402
from lfi_mmdet.models.teachers.caption_words import caption_words  # noqa: E402

from .tiny_blip import (  # noqa: E402
    ARCH,
    VOCABULARY,
    WORDS,
    save_weights,
    sharpen,
    write_vocabulary,
)
from .tiny_open_clip import CLASSES, GRID, SIDE, some_images  # noqa: E402

PRESENT = torch.tensor([[True, True, False], [False, True, True]])
EVERY = torch.ones(2, 3, dtype=torch.bool)
PROMPTS = [f'a photo of a {name}.' for name in CLASSES]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp('vocabulary'))


@pytest.fixture(scope='module')
def weights(folder, tmp_path_factory):
    teacher = BLIPTeacher(arch=ARCH, image_size=SIDE, tokenizer=folder)
    sharpen(teacher.network)
    return save_weights(teacher.network, tmp_path_factory.mktemp('weights') / 'w.pth')


@pytest.fixture
def make(folder, weights):
    def teacher_of(**changes):
        options = dict(
            pretrained=weights, arch=ARCH, image_size=SIDE, tokenizer=folder,
            class_names=CLASSES,
        )  # fmt: skip
        return BLIPTeacher(**{**options, **changes})

    return teacher_of


@torch.no_grad()
def step_by_step(teacher, image, prompt):
    """Cross-attention of every layer as BERT itself returns it, (L, h, S, 1 + N)."""
    network, seen = teacher.network, []
    handles = [
        layer.crossattention.self.register_forward_hook(
            lambda module, args, output: seen.append(output[1])
        )
        for layer in network.layers
    ]
    tokens = teacher.tokenizer(prompt, return_tensors='pt')
    ids = tokens.input_ids
    ids[:, 0] = teacher.tokenizer.additional_special_tokens_ids[0]
    states = network.text_backbone(
        ids,
        attention_mask=tokens.attention_mask,
        encoder_hidden_states=network.vision_backbone(image)[0],
        output_attentions=True,
        return_dict=True,
    ).last_hidden_state
    for handle in handles:
        handle.remove()
    logits = network.multimodal_head['fc'](states[:, 0])
    return torch.cat(seen), tokens, logits


def rows_of(teacher, tokens, name):
    """Positions of a name's tokens, by looking the tokens up."""
    wanted = teacher.tokenizer(name, add_special_tokens=False).input_ids
    ids = tokens.input_ids[0].tolist()
    starts = [i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted]
    return list(range(starts[0], starts[0] + len(wanted)))


@pytest.mark.parametrize('heads', ['mean', 'keep', [0, 2]])
def test_maps_are_the_cross_attention_of_the_words(make, heads):
    teacher, images = make(heads=heads), some_images()
    targets = teacher.interact(images, EVERY)
    count = 9 if heads == 'keep' else 3
    assert targets.maps.shape == (2, count, 3, *GRID)
    for image in range(2):
        for text, name in enumerate(CLASSES):
            probs, tokens, _ = step_by_step(
                teacher, images[image : image + 1], PROMPTS[text]
            )
            probs = probs[:, :, rows_of(teacher, tokens, name)].mean(2)
            if heads == 'keep':
                probs = probs.flatten(0, 1)
            else:
                probs = probs[:, list(range(3)) if heads == 'mean' else heads].mean(1)
            raw = probs[:, 1:]
            expected = raw / raw.sum(-1, keepdim=True)
            got = targets.maps[image, :, text].flatten(-2)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(
                targets.log_mass[image, :, text],
                raw.sum(-1).log(),
                atol=1e-4,
                rtol=1e-3,
            )
            values = teacher.network.vision_backbone(images[image : image + 1])[0][
                0, 1:
            ]
            torch.testing.assert_close(
                targets.features[image, :, text],
                expected @ values,
                atol=1e-4,
                rtol=1e-3,
            )
    assert targets.maps.flatten(-2).std(-1).min() > 1e-3  # else anything would pass


def test_layers_and_heads_have_names(make):
    teacher = make(layers=[-1, 0], heads='keep')
    assert teacher.layer_names == ['0.h0', '0.h1', '0.h2', '2.h0', '2.h1', '2.h2']
    assert (teacher.num_layers, teacher.feature_dims) == (6, 32)
    assert make(reading='similarity').layer_names == ['contrastive']


def test_gradient_maps_weight_attention_by_what_it_does_to_the_match(make):
    teacher, images = make(reading='gradient', heads='keep'), some_images()
    targets = teacher.interact(images, PRESENT)
    # by finite differences: more attention to patch n of the name in layer 1, head 2
    network, (image, text, layer, head) = teacher.network, (0, 0, 1, 2)
    probs, tokens, _ = step_by_step(teacher, images[:1], PROMPTS[text])
    rows = rows_of(teacher, tokens, CLASSES[text])
    module = network.layers[layer].crossattention.self

    def score(patch: int, step: float) -> torch.Tensor:
        def nudge(dropout, args):
            changed = args[0].clone()
            changed[0, head, rows, patch] += step
            return (changed,)

        handle = module.dropout.register_forward_pre_hook(nudge)
        logits = step_by_step(teacher, images[:1], PROMPTS[text])[2]
        handle.remove()
        return logits[0, 1].double()

    slopes = torch.stack(
        [(score(n, 1e-2) - score(n, -1e-2)) / 2e-2 for n in range(1, 17)]
    )
    raw = probs[layer, head, rows[0], 1:] * slopes.clamp(min=0)
    got = targets.maps[image, layer * 3 + head, text].flatten()
    assert raw.sum() > 0
    torch.testing.assert_close(got.double(), raw / raw.sum(), atol=0.02, rtol=0.05)


def test_the_last_layer_has_no_gradient_for_words_behind_the_first_token(make):
    targets = make(reading='gradient').interact(some_images(), PRESENT)
    assert (targets.maps[0, -1, 0] == 1 / 16).all()
    assert targets.maps[0, 0, 0].std() > 1e-3


def test_similarity_maps_are_cosines_in_the_joint_space(make):
    teacher, images = make(reading='similarity', temperature=0.1), some_images()
    network = teacher.network
    targets = teacher.interact(images, EVERY)
    tokens = teacher.tokenizer(PROMPTS, padding=True, return_tensors='pt')
    texts = network.text_neck(
        network.text_backbone(
            tokens.input_ids, attention_mask=tokens.attention_mask, mode='text'
        ).last_hidden_state[:, 0]
    )
    patches = network.vision_neck(network.vision_backbone(images)[0][:, 1:])
    cosine = F.cosine_similarity(texts[None, :, None], patches[:, None], dim=-1)
    maps = (cosine / 0.1).softmax(-1)
    torch.testing.assert_close(
        targets.maps[:, 0].flatten(-2), maps, atol=1e-5, rtol=1e-3
    )


def test_the_score_is_the_probability_of_a_match(make):
    teacher, images = (
        make(present='teacher', presence=dict(threshold=0.5)),
        some_images(),
    )
    targets = teacher.interact(images, None)
    for image in range(2):
        for text in range(3):
            logits = step_by_step(teacher, images[image : image + 1], PROMPTS[text])[2]
            torch.testing.assert_close(
                targets.scores[image, text],
                logits.softmax(-1)[0, 1],
                atol=1e-4,
                rtol=1e-3,
            )
    assert torch.equal(targets.present, targets.scores >= 0.5)


def test_many_pairs_in_turns_equal_all_at_once(make, monkeypatch):
    teacher, images = make(), some_images()
    at_once = teacher.interact(images, PRESENT).maps
    monkeypatch.setattr(blip, 'PAIRS_PER_PASS', 3)
    torch.testing.assert_close(teacher.interact(images, PRESENT).maps, at_once)


def test_maps_of_templates_and_synonyms_are_averaged(make):
    images = some_images()
    one, other = (
        make(template=t).interact(images, EVERY).maps
        for t in ('a photo of a {}.', 'the drawing of {}')
    )
    both = make(template=['a photo of a {}.', 'the drawing of {}'])
    torch.testing.assert_close(
        both.interact(images, EVERY).maps, (one + other) / 2, atol=1e-5, rtol=1e-3
    )
    kitten = make(class_names=('kitten',) + CLASSES[1:]).interact(images, EVERY).maps
    named = make(synonyms=dict(cat=['kitten'])).interact(images, EVERY).maps
    torch.testing.assert_close(
        named[:, :, 0], (one + kitten)[:, :, 0] / 2, atol=1e-5, rtol=1e-3
    )


def test_words_are_read_within_their_captions(make):
    teacher = make(texts='captions', max_free=1)
    captions = ['two cats on the grass', 'a photo of a cat']
    words = caption_words(captions, CLASSES, max_free=1)
    assert {word.row for word in words} == {0, 3}  # cat, grass
    present = torch.zeros(1, 4, dtype=torch.bool)
    present[0, [0, 3]] = True
    image = some_images(1)
    targets = teacher.interact_words(image, [words], present)
    assert targets.maps.shape == (1, 3, 4, *GRID)
    first, tokens, _ = step_by_step(teacher, image, captions[0])
    ids = tokens.input_ids[0].tolist()
    vocabulary = teacher.tokenizer.get_vocab()
    where = ids.index(vocabulary['cat'])
    cats = first[:, :, [where, where + 1]].mean(2).mean(1)[:, 1:]  # cat ##s
    second, tokens, _ = step_by_step(teacher, image, captions[1])
    where = tokens.input_ids[0].tolist().index(vocabulary['cat'])
    cat = second[:, :, where].mean(1)[:, 1:]
    expected = sum(m / m.sum(-1, keepdim=True) for m in (cats, cat)) / 2
    torch.testing.assert_close(
        targets.maps[0, :, 0].flatten(-2), expected, atol=1e-5, rtol=1e-3
    )


def test_a_long_caption_loses_its_beginning_until_the_word_is_within_reach(make):
    teacher = make(texts='captions')
    caption = 'a photo of the ' * 12 + 'cat on the grass'
    (word,) = caption_words([caption], CLASSES)
    present = torch.tensor([[True, False, False]])
    targets = teacher.interact_words(some_images(1), [[word]], present)
    torch.testing.assert_close(targets.maps.sum((-2, -1)), torch.ones(1, 3, 3))
    assert targets.maps[0, :, 0].std() > 1e-3
    with pytest.raises(ValueError, match='cut at 35 tokens'):
        make().interact_words(some_images(1), [[word]], present)


def test_similarities_of_words_are_those_of_the_words_and_not_of_the_caption(make):
    teacher = make(reading='similarity', texts='captions', max_free=1)
    words = caption_words(['two cats on the grass'], CLASSES, max_free=1)
    present = torch.zeros(1, 4, dtype=torch.bool)
    present[0, [0, 3]] = True
    image = some_images(1)
    targets = teacher.interact_words(image, [words], present)
    names = (*CLASSES, 'grass')
    alone = make(reading='similarity', class_names=names, template='a photo of a {}.')
    expected = alone.interact(image, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(targets.maps[:, :, 3], expected.maps[:, :, 3])
    assert (targets.maps[:, :, 0] - targets.maps[:, :, 3]).abs().max() > 1e-3


@pytest.mark.parametrize('reading', BLIPTeacher.READINGS)
def test_captions_without_words_leave_nothing_to_read(make, reading):
    teacher = make(reading=reading, texts='captions')
    none = torch.zeros(2, 3, dtype=torch.bool)
    targets = teacher.interact_words(some_images(), [[], []], none)
    assert (targets.maps == 1 / 16).all() and not targets.present.any()


def test_it_is_frozen_quiet_and_shared(make):
    teacher = make()
    assert not any(m.training for m in teacher.network.modules())  # BERT has dropout
    assert not any(p.requires_grad for p in teacher.network.parameters())
    images = some_images()
    first, second = (teacher.interact(images, PRESENT).maps for _ in range(2))
    assert torch.equal(first, second)
    assert copy.deepcopy(teacher) is teacher
    teacher.verify()


def test_random_weights_are_the_same_each_time_and_draw_nothing(make):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(pretrained=None).weights_hash()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert make(pretrained=None).weights_hash() == first


def test_maps_survive_autocast_and_a_rounded_network(make):
    images = some_images()
    plain = make().interact(images, PRESENT)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = make().interact(images, PRESENT)
    rounded = make(precision='bfloat16').interact(images, PRESENT)
    for targets in (cast, rounded):
        assert targets.maps.dtype == targets.features.dtype == torch.float32
        torch.testing.assert_close(targets.maps.sum((-2, -1)), torch.ones(2, 3, 3))
        assert (targets.maps - plain.maps).abs().mean() < 0.02


def test_positions_are_resized_to_another_image_size(make):
    targets = make(image_size=(32, 48)).interact(some_images(2, 32, 48), PRESENT)
    assert targets.maps.shape == (2, 3, 3, 4, 6)


def test_weights_are_loaded_and_nothing_else_is_built(make, weights):
    teacher = make()
    state = torch.load(weights, weights_only=True)['state_dict']
    own = teacher.network.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own)
    assert not any('_m.' in key for key in own)


@pytest.mark.parametrize(
    'spoil, error, message',
    [
        (
            lambda s: s.pop('text_neck.weight'),
            ValueError,
            'text_neck.weight is missing',
        ),
        (
            lambda s: s.update({'vision_neck.weight': torch.zeros(2, 2)}),
            ValueError,
            r'vision_neck.weight has shape \(2, 2\), the model needs \(16, 32\)',
        ),
    ],
)
def test_weights_of_another_architecture_are_named(
    make, weights, tmp_path, spoil, error, message
):
    checkpoint = torch.load(weights, weights_only=True)
    spoil(checkpoint['state_dict'])
    torch.save(checkpoint, tmp_path / 'other.pth')
    with pytest.raises(error, match=message):
        make(pretrained=str(tmp_path / 'other.pth'))


def test_files_that_are_missing_or_cut_off_are_named(make, weights, tmp_path):
    with pytest.raises(FileNotFoundError, match='none.pth: no such file'):
        make(pretrained=str(tmp_path / 'none.pth'))
    data = open(weights, 'rb').read()
    (tmp_path / 'cut.pth').write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match='cut.pth cannot be read; it is truncated'):
        make(pretrained=str(tmp_path / 'cut.pth'))


def test_a_vocabulary_that_is_missing_or_foreign_is_named(make, tmp_path):
    with pytest.raises(FileNotFoundError, match='has no vocab.txt'):
        make(tokenizer=str(tmp_path))
    words = '\n'.join(f'word{i}' for i in range(VOCABULARY))
    (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n' + words)
    with pytest.raises(ValueError, match=f'but BLIP {VOCABULARY}'):
        make(tokenizer=str(tmp_path))
    (tmp_path / 'vocab.txt').write_text('\n'.join(WORDS[:-3]))  # cut off
    with pytest.raises(ValueError, match='tokens, but BLIP .* truncated'):
        make(tokenizer=str(tmp_path))


@pytest.mark.parametrize(
    'changes, complaint',
    [
        (dict(arch='huge'), "arch='huge'.*base"),
        (dict(arch=dict(vision={})), 'lacks .*joint_dims.*text'),
        (dict(layers=[3]), '3 text layers'),
        (dict(heads=[3]), r'heads=\[3\].*0 to 2'),
        (dict(heads='max'), "heads='max'.*mean.*keep"),
        (dict(temperature=0), 'temperature=0 must be above 0'),
        (dict(class_names=('cat',), template='a ' * 40 + '{}'), 'cut at 35 tokens'),
    ],
)
def test_a_bad_option_is_named_with_its_choices(make, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**changes)


def test_without_transformers_the_package_works_and_blip_says_what_is_missing():
    code = """
        import sys
        sys.modules['transformers'] = None
        import lfi_mmdet
        from lfi_mmdet.models.teachers import BLIPTeacher
        try:
            BLIPTeacher()
        except ImportError as error:
            assert 'lfi_mmdet[blip]' in str(error), error
        else:
            raise SystemExit('no error')
    """
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
