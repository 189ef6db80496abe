"""Checks of files and configs before a run."""

import json

import pytest
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS
from mmengine.config import Config

from lfi_mmdet.engine.preflight import (
    InputError,
    annotations,
    check_classes,
    check_config,
    check_images,
    is_local,
    iter_datasets,
    lists_plain_coco,
    load_coco,
    missing_files,
    read_categories,
)
from tests.tiny import CLASSES, write_tiny_coco

CATEGORIES = [dict(id=i, name=name) for i, name in enumerate(CLASSES)]


# -- annotation files ----------------------------------------------------------------
@pytest.mark.parametrize(
    'content, message',
    [
        (None, r'ann_file: no file .*a\.json'),
        ('', r'a\.json is empty \(0 bytes\)'),
        ('{"images": [', r'a\.json is no JSON, or was cut off: .*line 1 column 13'),
        ('\xff', r'a\.json is no JSON'),
        ('[]', r'it lacks a list of images and of categories'),
        ('{"images": [], "categories": 3}', r'it lacks a list of categories'),
    ],
)
def test_a_broken_annotation_file_is_named_with_what_is_wrong(
    tmp_path, content, message
):
    if content is not None:
        (tmp_path / 'a.json').write_text(content, encoding='latin-1')
    with pytest.raises(InputError, match=message):
        load_coco(str(tmp_path / 'a.json'), 'ann_file')


def test_a_folder_is_no_annotation_file(tmp_path):
    with pytest.raises(InputError, match='is a folder, not a file'):
        load_coco(str(tmp_path), 'ann_file')


def test_of_a_large_file_only_the_end_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, 'WHOLE_FILE_LIMIT', 10)
    path = tmp_path / 'a.json'
    path.write_text('{"images": no JSON at all}  \n')
    assert load_coco(str(path), 'ann_file') is None
    path.write_text('{"images": [{"id": 1}, {"i')
    with pytest.raises(InputError, match=r'a\.json does not end with "}"'):
        load_coco(str(path), 'ann_file')


def test_the_categories_of_a_large_file_are_found_without_parsing_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(annotations, 'WHOLE_FILE_LIMIT', 10)
    path = tmp_path / 'a.json'
    decoy = (
        '"info": {"categories": [1, 2]}, "text": "\\"categories\\": [", "images": no, '
    )
    path.write_text(f'{{{decoy} "categories" : {json.dumps(CATEGORIES)} }}')
    assert read_categories(str(path), 'ann_file') == CATEGORIES
    path.write_text(f'{{{decoy}}}')
    with pytest.raises(InputError, match='lacks categories'):
        read_categories(str(path), 'ann_file')


@pytest.mark.parametrize('classes', [CLASSES, CLASSES[1:], CLASSES[:1]])
def test_classes_in_the_order_of_the_annotations_are_accepted(classes):
    check_classes(classes, CATEGORIES, 'dataset', 'a.json')


def test_unknown_classes_are_named_beside_the_categories_there_are():
    with pytest.raises(InputError) as caught:
        check_classes(('red', 'gren', 'blu'), CATEGORIES, 'dataset', 'a.json')
    assert str(caught.value) == (
        "dataset.metainfo.classes: a.json has no 'gren', 'blu'; its categories are "
        "'red', 'green', 'blue'"
    )


@pytest.mark.parametrize('classes', [('blue', 'red'), ('red', 'red')])
def test_labels_that_would_belong_to_other_classes_are_refused(classes):
    with pytest.raises(InputError, match=r"a\.json.* write '(red', 'blue|red)'$"):
        check_classes(classes, CATEGORIES, 'dataset', 'a.json')


# -- images --------------------------------------------------------------------------
def test_missing_images_are_found_in_every_folder(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / '1.png').touch()
    paths = [str(tmp_path / name) for name in ('a/1.png', 'a/2.png', 'b/1.png')]
    assert missing_files(paths) == paths[1:]
    with pytest.raises(
        InputError, match=r'prefix: 2 of 3 images of x\.json are missing'
    ):
        check_images(paths, 'prefix', 'x.json')
    with pytest.raises(InputError, match=r'1 of 1 images of x\.json are empty'):
        check_images(paths[:1], 'prefix', 'x.json')
    (tmp_path / 'a' / '1.png').write_bytes(b'x')
    check_images(paths[:1], 'prefix', 'x.json')


def test_only_local_files_are_looked_for():
    assert is_local('data/a.json', None)
    assert is_local('data/a.json', dict(backend='local'))
    assert not is_local('s3://data/a.json', None)
    assert not is_local('data/a.json', dict(backend='petrel'))


# -- configs -------------------------------------------------------------------------
def coco(root, split='train', **changes):
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file=f'{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=CLASSES),
        **changes,
    )


def config(dataset, split='train', **changes):
    loaders = {f'{split}_dataloader': dict(dataset=dataset), f'{split}_cfg': dict()}
    return Config({**loaders, **changes})


@pytest.fixture
def root(tmp_path):
    write_tiny_coco(tmp_path)
    return tmp_path


def edit(root, change, name='train'):
    path = root / f'{name}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_good_config_passes(root):
    check_config(config(coco(root)), ('train', 'val', 'test'))


def test_images_without_labels_pass_where_none_are_loaded(root):
    edit(root, lambda content: content.pop('annotations'))
    cfg = config(coco(root, pipeline=[dict(type='LoadImageFromFile')]))
    check_config(cfg, ('train', 'val'))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda c: c['images'].clear(), r'train\.json lists no images'),
        (lambda c: c['images'][1].pop('height'), r"images\[1\] lacks 'height'"),
        (lambda c: c['annotations'][2].pop('area'), r"annotations\[2\] lacks 'area'"),
        (lambda c: c['categories'][0].pop('name'), r"categories\[0\] lacks 'name'"),
        (lambda c: c['annotations'][2].update(id=1), r'annotations with the id 1$'),
        (lambda c: c['annotations'].clear(), r'no annotation of any class'),
        (lambda c: c['annotations'].append(7), r'annotations\[8\] is 7, no object'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2]), r'\[0\]\.bbox=\[1, 2\]'),
        (lambda c: c['annotations'][3].update(image_id=99), r'\[3\]\.image_id=99 is'),
        (lambda c: c['categories'].reverse(), r"write 'blue', 'green', 'red'"),
        (lambda c: c['images'][0].update(file_name='x'), r"1 of 4 .*missing: '.*/x'$"),
    ],
)
def test_annotations_that_mmdet_could_not_use_are_refused(root, change, message):
    edit(root, change)
    with pytest.raises(InputError, match=message):
        check_config(config(coco(root)), ('train',))


def test_a_dataset_to_test_on_may_be_without_annotations(root):
    edit(root, lambda content: content.pop('annotations'))
    check_config(config(coco(root, test_mode=True), 'test'), ('test',))


@pytest.mark.parametrize(
    'wrap, key',
    [
        (lambda d: dict(type='RepeatDataset', times=2, dataset=d), 'dataset'),
        (lambda d: dict(type='ClassBalancedDataset', dataset=d), 'dataset'),
        (lambda d: dict(type='MultiImageMixDataset', dataset=d), 'dataset'),
        (lambda d: dict(type='ConcatDataset', datasets=[d]), 'datasets.0'),
        (
            lambda d: dict(
                type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[d])
            ),
            'dataset.datasets.0',
        ),
    ],
)
def test_datasets_in_wrappers_are_checked_under_their_key(root, wrap, key):
    good, bad = coco(root), coco(root, 'no')
    check_config(config(wrap(good)), ('train',))
    with pytest.raises(InputError) as caught:
        check_config(config(wrap(bad)), ('train',))
    assert str(caught.value).startswith(f'train_dataloader.dataset.{key}.ann_file: ')


def test_built_wrappers_are_opened_as_their_configs_are(root):
    several = dict(type='ConcatDataset', datasets=[coco(root), coco(root)])
    wrapped = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=several))
    keys = ['d.dataset.datasets.0', 'd.dataset.datasets.1']
    assert dict(iter_datasets(wrapped, 'd')) == dict(
        zip(keys, wrapped.dataset.datasets)
    )


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(type='CocoDatset'), "type='CocoDatset' .*choose from .*'CocoDataset'"),
        (dict(metainfo=dict(classes='red')), r"'red' is neither .* write \('red',\)"),
        (dict(data_prefix=dict()), r'data_prefix={} does not say where the images are'),
        (dict(data_prefix=dict(img='no/')), r'data_prefix\.img: no folder .*no/'),
    ],
)
def test_dataset_settings_that_do_not_work_are_refused(root, changes, message):
    with pytest.raises(InputError, match=message):
        check_config(config({**coco(root), **changes}), ('train',))


def test_classes_may_be_listed_in_a_file(root):
    (root / 'names.txt').write_text('\n'.join(CLASSES))
    metainfo = dict(classes=str(root / 'names.txt'))
    check_config(config({**coco(root), 'metainfo': metainfo}), ('train',))
    (root / 'names.txt').write_text('purple')
    with pytest.raises(InputError, match="no 'purple'"):
        check_config(config({**coco(root), 'metainfo': metainfo}), ('train',))


def test_classes_that_are_not_given_are_those_of_the_dataset_type(root):
    dataset = coco(root)
    del dataset['metainfo']
    with pytest.raises(InputError, match=r"has no 'person', .* and 60 more; its"):
        check_config(config(dataset), ('train',))


def test_other_formats_need_a_file_only(tmp_path):
    dataset = dict(type='VOCDataset', data_root=str(tmp_path), ann_file='train.txt')
    with pytest.raises(InputError, match=r'ann_file: no file .*train\.txt'):
        check_config(config(dataset), ('train',))
    (tmp_path / 'train.txt').write_text('no JSON')
    check_config(config(dataset), ('train',))


def test_datasets_that_read_coco_files_in_their_own_way_are_not_judged():
    class Other(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return raw_data_info

    assert lists_plain_coco(CocoDataset)
    assert not lists_plain_coco(Other)
    assert not lists_plain_coco(XMLDataset)


def test_remote_data_is_left_alone(root):
    check_config(config(coco('s3://bucket')), ('train',))
    check_config(config(coco('no', backend_args=dict(backend='petrel'))), ('train',))
    images = dict(data_prefix=dict(img='s3://bucket/train/'))
    check_config(config({**coco(root), **images}), ('train',))


def test_splits_without_a_loop_are_left_out(root):
    cfg = config(coco(root, 'no'), 'val')
    with pytest.raises(InputError, match=r'val_dataloader\.dataset\.ann_file'):
        check_config(cfg, ('val',))
    check_config(cfg, ('train',))
    cfg.val_cfg = None
    check_config(cfg, ('train', 'val'))


@pytest.mark.parametrize('several', [False, True])
def test_annotations_of_evaluators_are_looked_for(root, several):
    evaluator = dict(type='CocoMetric', ann_file=str(root / 'no.json'))
    cfg = config(
        coco(root), 'test', test_evaluator=[evaluator] if several else evaluator
    )
    with pytest.raises(
        InputError, match=r'test_evaluator\.ann_file: no file .*no\.json'
    ):
        check_config(cfg, ('test',))


def test_annotations_of_evaluators_are_those_of_the_dataset(root):
    write_tiny_coco(root, split='other', classes=('red', 'green', 'pink'))
    write_tiny_coco(root, split='less', num_images=2)
    for split, message in (
        ('other', r"other\.json has no 'blue'"),
        ('less', r'test_evaluator\.ann_file: .*less\.json lacks 2 images of .*train'),
    ):
        evaluator = dict(type='CocoMetric', ann_file=str(root / f'{split}.json'))
        with pytest.raises(InputError, match=message):
            check_config(
                config(coco(root), 'test', test_evaluator=evaluator), ('test',)
            )
