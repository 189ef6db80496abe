"""Words of captions: which name a class, which are free, and how they are counted."""

import json
import tarfile
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset

from lfi_mmdet.models.teachers.caption_words import caption_words, class_synonyms
from lfi_mmdet.models.teachers.coco_synonyms import COCO_SYNONYMS
from lfi_mmdet.models.teachers.english import STOP_WORDS, names_something, singular

COCO = CocoDataset.METAINFO['classes']
DATA = Path(__file__).parents[4] / 'shared' / 'data' / 'coco_mini.tar'


def named(caption, names=COCO, synonyms=None):
    """(class name, the characters it was found in), in the order of the caption."""
    return [
        (names[word.owner], caption[word.start : word.stop])
        for word in caption_words([caption], names, synonyms)
    ]


def free(captions, max_free=100, names=COCO):
    return [
        (word.text, word.row - len(names))
        for word in caption_words(captions, names, max_free=max_free)
        if word.owner is None
    ]


@pytest.mark.parametrize(
    'plurals, singulars',
    [
        ('people women firemen children mice', 'person woman fireman child mouse'),
        ('feet knives shelves buses cookies', 'foot knife shelf bus cookie'),
        ('skis babies benches dishes glasses', 'ski baby bench dish glass'),
        ('boxes potatoes shoes horses houses', 'box potato shoe horse house'),
        ('dogs vases giraffes buildings men', 'dog vase giraffe building man'),
    ],
)
def test_plurals_become_singular(plurals, singulars):
    assert [singular(word) for word in plurals.split()] == singulars.split()
    assert [singular(word) for word in singulars.split()] == singulars.split()


@pytest.mark.parametrize(
    'word', 'bus glass tennis grass gas scissors ramen sheep cactus his was'.split()
)
def test_words_that_only_look_like_plurals_stay(word):
    assert singular(word) == word


@pytest.mark.parametrize(
    'caption, expected',
    [
        ('Two dogs chase a Cat.', [('dog', 'dogs'), ('cat', 'Cat')]),
        ('teddy bear or bear', [('teddy bear', 'teddy bear'), ('bear', 'bear')]),
        ('Hot-dogs for a dog', [('hot dog', 'Hot-dogs'), ('dog', 'dog')]),
        ('a skate board, SKATEBOARDS and skate-boards', [
            ('skateboard', 'skate board'), ('skateboard', 'SKATEBOARDS'),
            ('skateboard', 'skate-boards')]),
        ('fire   hydrants', [('fire hydrant', 'fire   hydrants')]),
        ('a stop. Sign here', []),
        ('traffic (light)', []),
        ("the person's umbrella", [('person', 'person'), ('umbrella', 'umbrella')]),
        ('people on skis', [('person', 'people'), ('skis', 'skis')]),
        ('scissors and knives', [('scissors', 'scissors'), ('knife', 'knives')]),
        ('catastrophe in a carpet store', []),
        ('', []),
    ],
)  # fmt: skip
def test_the_longest_name_in_the_caption_wins(caption, expected):
    assert named(caption) == expected


def test_names_written_as_one_word_are_found_as_two():
    assert named('a skate-board', ('skateboard',)) == [('skateboard', 'skate-board')]


def test_synonyms_name_their_class_and_class_names_beat_them():
    caption = 'A woman on a motor bike near a fire truck, sofas and a bike'
    assert named(caption, synonyms='coco') == [
        ('person', 'woman'),
        ('motorcycle', 'motor bike'),
        ('truck', 'truck'),
        ('couch', 'sofas'),
        ('bicycle', 'bike'),
    ]
    assert named('a woman', ('person', 'woman'), 'coco') == [('woman', 'woman')]
    given = dict(dent=['bump', 'small hollow'])
    assert named('Bumps and a small hollow', ('scratch', 'dent'), given) == [
        ('dent', 'Bumps'),
        ('dent', 'small hollow'),
    ]


def test_classes_have_the_row_of_their_index_and_free_words_follow():
    captions = ['A dog on grass near a fence', 'Grass, a dog, and tall grass']
    words = caption_words(captions, ('cat', 'dog'), max_free=2)
    assert [(w.text, w.owner, w.row) for w in words] == [
        ('dog', 1, 1),
        ('grass', None, 2),
        ('fence', None, 3),
        ('grass', None, 2),
        ('dog', 1, 1),
        ('grass', None, 2),
    ]
    assert [w.caption for w in words] == captions[:1] * 3 + captions[1:] * 3


def test_free_words_rank_by_captions_then_by_order():
    captions = [
        'a fence and a fence and a fence by a lake',
        'the wall of a garden',
        'walls around the gardens',
    ]
    assert free(captions, 3) == [
        *[('fence', 2)] * 3,
        ('wall', 0),
        ('garden', 1),
        ('wall', 0),
        ('garden', 1),
    ]
    assert free(captions, 0) == []


def test_words_that_name_nothing_are_no_free_words():
    caption = (
        "Two of them aren't sitting very near the big old building at 7 pm, it's red"
    )
    assert [word for word, _ in free([caption])] == ['building', 'red']
    assert not names_something('was') and not names_something('sides')
    assert all(word == word.lower() for word in STOP_WORDS)


@settings(max_examples=200, deadline=None)
@given(
    captions=st.lists(
        st.text(alphabet=st.sampled_from("aebdgost İßʼ'-.,\n"), max_size=30)
        | st.text(max_size=20)
        | st.lists(st.sampled_from(['Dogs', 'hot', 'tree', '-', 'lake']), max_size=6)
        .map(' '.join),
        max_size=4,
    ),
    max_free=st.integers(0, 3),
)  # fmt: skip
def test_spans_hold_for_any_text(captions, max_free):
    """Within the caption, in order, without overlap, and rows without a gap."""
    words = caption_words(captions, COCO, 'coco', max_free)
    for caption in set(captions):
        spans = [(w.start, w.stop) for w in words if w.caption == caption]
        spans = spans[: len(spans) // captions.count(caption)]
        flat = [position for span in spans for position in span]
        assert flat == sorted(flat) and all(start < stop for start, stop in spans)
        assert not flat or flat[-1] <= len(caption)
    rows = {w.row for w in words if w.owner is None}
    assert rows == {len(COCO) + j for j in range(len(rows))} and len(rows) <= max_free
    assert all(
        w.row == w.owner and w.text == COCO[w.owner]
        for w in words
        if w.owner is not None
    )
    assert len({w.text for w in words if w.owner is None}) == len(rows)


def test_the_table_knows_coco_and_no_word_twice():
    assert tuple(COCO_SYNONYMS) == tuple(COCO)
    assert caption_words(['a man'], COCO, 'coco')[0].owner == 0  # or it would raise
    words = [word for words in COCO_SYNONYMS.values() for word in words]
    assert len(set(words)) == len(words) and not set(words) & set(COCO)
    for name, others in COCO_SYNONYMS.items():
        for word in others:
            assert named(f'A {word} here.', synonyms='coco') == [(name, word)]


def test_the_table_serves_part_of_coco_too():
    assert class_synonyms(('bus', 'gnome', 'couch'), 'coco') == [
        COCO_SYNONYMS['bus'],
        (),
        COCO_SYNONYMS['couch'],
    ]
    assert class_synonyms(('a', 'b'), None) == [(), ()]


@pytest.mark.parametrize(
    'names, synonyms, complaint',
    [
        (('cat', 'dog'), dict(dgo=['hound']), "entries for 'dgo'.*are 'cat', 'dog'"),
        (('cat', 'dog'), dict(dog='hound'), r"synonyms\['dog'\]='hound' is not a list"),
        (('cat', 'dog'), dict(dog=['']), 'not a list of words'),
        (('cat', 'dog'), 'lvis', "synonyms='lvis' is not known; choose 'coco'"),
        (('circle', 'star'), 'coco', "none of the classes is one of COCO's: 'circle'"),
        (('cat', 'dog'), dict(cat=['pet'], dog=['pets']), "'pets' to both 'cat' and"),
        (('hot dog', 'hotdogs'), None, "'hotdogs' cannot be told from 'hot dog'"),
        (('cat', '42'), None, "'42' has no letters"),
    ],
)
def test_names_and_synonyms_that_cannot_be_used_are_named(names, synonyms, complaint):
    with pytest.raises(ValueError, match=complaint):
        caption_words(['a cat'], names, synonyms)


def test_a_negative_number_of_free_words_is_refused():
    with pytest.raises(ValueError, match='max_free=-1 is negative'):
        caption_words(['a cat'], ('cat',), max_free=-1)


@pytest.mark.skipif(not DATA.exists(), reason=f'{DATA} is not there')
@pytest.mark.parametrize('split', ['train', 'val'])
def test_captions_of_real_photos_name_what_they_show(split):
    """Captions leave out much of what is there, and add hardly anything."""
    with tarfile.open(DATA) as tar:

        def load(kind):
            path = f'coco_mini/annotations/{kind}_{split}2017.json'
            return json.load(tar.extractfile(path))

        instances, captions = load('instances'), load('captions')
    index = {c['id']: COCO.index(c['name']) for c in instances['categories']}
    truth, texts = defaultdict(set), defaultdict(list)
    for annotation in instances['annotations']:
        truth[annotation['image_id']].add(index[annotation['category_id']])
    for annotation in captions['annotations']:
        texts[annotation['image_id']].append(annotation['caption'])
    for synonyms, least_recall in ((None, 0.35), ('coco', 0.45)):
        right = said = shown = 0
        for img_id, sentences in texts.items():
            words = {w.owner for w in caption_words(sentences, COCO, synonyms)}
            right += len(words & truth[img_id])
            said, shown = said + len(words), shown + len(truth[img_id])
        print(
            f'{split}, {len(texts)} photos, synonyms={synonyms}: captions name '
            f'{right}/{shown} = {right / shown:.1%} of the classes shown, and '
            f'{right}/{said} = {right / said:.1%} of those named are shown'
        )
        assert right / shown > least_recall and right / said > 0.85
