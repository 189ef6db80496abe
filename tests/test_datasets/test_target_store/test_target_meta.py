"""What a store says about itself, and which stores are taken for others."""

import dataclasses
import json

import pytest

from lfi_mmdet.datasets.target_store import (
    StoreMeta,
    TargetStoreError,
    TargetStoreWriter,
    differences,
    inner_teacher,
    plain_teacher,
)
from tests.stored_targets import make_meta, make_record


def test_meta_survives_the_disk(tmp_path):
    meta = make_meta(report=dict(tv_mean=0.001))
    meta.write(tmp_path)
    assert StoreMeta.read(tmp_path) == meta
    assert [path.name for path in tmp_path.iterdir()] == ['store.json']
    # later versions may tell more
    content = json.loads((tmp_path / 'store.json').read_text())
    (tmp_path / 'store.json').write_text(json.dumps({**content, 'more': 1}))
    assert StoreMeta.read(tmp_path) == meta


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'it has no store.json.*cache_teacher.py CONFIG --out'),
        ('{"teach', 'damaged'),
        ('[]', 'damaged'),
        ('{}', "damaged.*'format_version'"),
        ('{"format_version": 99}', 'in format 99.*reads 1'),
    ],
)
def test_a_folder_that_is_no_store_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'store.json').write_text(content)
    with pytest.raises(TargetStoreError, match=message):
        StoreMeta.read(tmp_path)


def test_a_folder_that_does_not_exist_and_a_file_are_told_apart(tmp_path):
    with pytest.raises(TargetStoreError, match='there is no such folder'):
        StoreMeta.read(tmp_path / 'other')
    (tmp_path / 'file').touch()
    with pytest.raises(TargetStoreError, match='it is a file'):
        StoreMeta.read(tmp_path / 'file')


OTHER_CLIP = dict(type='CLIPTeacher', model='ViT-B-16', template='the {}.')


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(teacher=dict(type='CoCaTeacher')),
            'teacher: CLIPTeacher in the store, CoCaTeacher here',
        ),
        (
            dict(teacher=OTHER_CLIP),
            "teacher.template: 'a {}.' in the store, 'the {}.' here",
        ),
        (
            dict(teacher=dict(type='CLIPTeacher', model='ViT-B-16')),
            "teacher.template: 'a {}.' in the store, left at its default here",
        ),
        (
            dict(weights='b' * 64),
            'weights: sha256 aaaaaaaaaaaa... in the store, bbbbbbbbbbbb... here',
        ),
        (
            dict(classes=['cat', 'cow', 'bird']),
            "class 1: 'dog' in the store, 'cow' here",
        ),
        (dict(classes=['cat']), 'classes: 3 in the store, 1 here'),
        (
            dict(view=[dict(size=[336, 336], mean=[0.5] * 3, std=[0.5] * 3)]),
            'image size: [224, 224] in the store, [336, 336] here',
        ),
        (dict(layers=['11']), "layers: ['10', '11'] in the store, ['11'] here"),
        (dict(grid=[8, 8]), 'grid of the maps: [4, 6] in the store, [8, 8] here'),
        (
            dict(dtype='float16'),
            'format of the maps (--dtype): uint8 in the store, float16 here',
        ),
        (
            dict(texts='all'),
            'texts that are kept (--texts): present in the store, all here',
        ),
        (
            dict(features=True),
            'whether features are kept (--features): False in the store, True here',
        ),
        (
            dict(dataset=dict(ann_file='x.json', sha256='e' * 64, num_images=10)),
            'dataset: train.json (sha256 dddddddddddd..., 10 images) in the store, '
            'x.json (sha256 eeeeeeeeeeee..., 10 images) here',
        ),
        (
            dict(targets_version=2),
            'meaning of the targets (TARGETS_VERSION): 1 in the store, 2 here',
        ),
    ],
)
def test_a_foreign_store_is_not_continued_and_every_reason_is_given(
    tmp_path, change, message
):
    with TargetStoreWriter(tmp_path, make_meta()) as writer:
        writer.put(1, make_record())
    other = make_meta(**change)
    assert differences(make_meta(), other) == [message]
    with pytest.raises(TargetStoreError, match='Choose another folder') as caught:
        TargetStoreWriter(tmp_path, other)
    assert message in str(caught.value)


def test_several_reasons_are_all_given():
    other = make_meta(weights='b' * 64, grid=[8, 8])
    assert len(differences(make_meta(), other)) == 2


def test_what_is_not_known_is_not_compared():
    assert differences(make_meta(), StoreMeta()) == []
    only = StoreMeta(teacher=dict(OTHER_CLIP))
    assert [text[:16] for text in differences(make_meta(), only)] == [
        'teacher.template'
    ]


def test_state_and_version_of_the_code_do_not_make_a_store_foreign():
    meta = make_meta()
    other = dataclasses.replace(
        meta, complete=True, code_version='9', num_images=3, report={}
    )
    assert differences(meta, other) == []


def test_a_tag_and_a_file_of_the_same_weights_are_the_same_teacher():
    tag, file = (
        make_meta(teacher=dict(type='CLIPTeacher', pretrained=name))
        for name in ('openai', 'ViT-B-16.pt')
    )
    assert differences(tag, file) == []
    # without the weights at hand nobody can tell
    file.weights = None
    assert 'openai' in differences(tag, file)[0]


def test_configs_of_one_teacher_have_one_plain_form():
    given = dict(
        type='mmdet.GroundTruthTeacher',
        grid_size=16,
        blur=(4.0, 2.0, 1.0, 0.5),  # the default
        present='ground_truth',  # the default, of the base class
        class_names=('a', 'b'),
        noise=0.1,
    )
    plain = dict(type='GroundTruthTeacher', grid_size=16, noise=0.1)
    assert plain_teacher(given) == plain == plain_teacher(plain)


def test_paths_do_not_matter_but_names_of_files_do():
    cfg = dict(
        type='CLIPTeacher', model='x', pretrained='/data/a.pt', cache_dir='/tmp/cache'
    )
    assert plain_teacher(cfg) == dict(type='CLIPTeacher', model='x', pretrained='a.pt')
    nested = dict(type='EnsembleTeacher', teachers=[cfg], weights=(1, 2))
    assert plain_teacher(nested) == dict(
        type='EnsembleTeacher', teachers=[plain_teacher(cfg)], weights=[1, 2]
    )
    json.dumps(plain_teacher(nested))


def test_the_teacher_inside_of_a_cached_one_is_found():
    inner = dict(type='CLIPTeacher', model='x')
    cached = dict(type='CachedTeacher', store='s', teacher=inner)
    assert inner_teacher(cached) == inner == inner_teacher(inner)
    with pytest.raises(ValueError, match=r'model\.teacher\.teacher=dict'):
        inner_teacher(dict(type='CachedTeacher', store='s'))
    with pytest.raises(ValueError, match="model.teacher='clip' is not a config"):
        inner_teacher('clip')
