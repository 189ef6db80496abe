"""A file that lists images and nothing else is enough for images without labels."""

import json
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config

from lfi_mmdet.datasets import UnlabeledCocoDataset
from lfi_mmdet.engine.preflight import InputError, check_config
from lfi_mmdet.engine.preflight.captions import _listed_ids
from tests.test_tools.conftest import call_tool, in_place
from tests.tiny import CLASSES
from tests.unlabelled import write_mixed, write_pretraining, write_unlabelled


def dataset_cfg(root, **changes) -> dict:
    return dict(
        type='UnlabeledCocoDataset',
        data_root=str(root),
        ann_file='unlabelled.json',
        data_prefix=dict(img='unlabelled/'),
        pipeline=[dict(type='LoadImageFromFile')],
        **changes,
    )


def build(root, **changes):
    return DATASETS.build(dataset_cfg(root, **changes))


def check(root) -> None:
    loader = dict(dataset=dataset_cfg(root))
    check_config(Config(dict(train_dataloader=loader, train_cfg=dict())), ('train',))


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_file_of_images_alone_is_read_as_it_is_downloaded(tmp_path):
    path = write_unlabelled(tmp_path, categories=False)
    assert set(json.loads(path.read_text())) == {'images', 'info', 'licenses'}
    check(tmp_path)
    dataset = build(tmp_path)
    assert dataset.metainfo['classes'] == CocoDataset.METAINFO['classes']
    infos = [dataset.get_data_info(i) for i in range(4)]
    assert [info['img_id'] for info in infos] == list(range(101, 105))
    assert all(info['instances'] == [] for info in infos)
    assert dataset[3]['img'].shape == (64, 64, 3)
    assert _listed_ids(dataset) == list(range(101, 105))


def test_it_lists_what_mmdets_own_dataset_does_where_that_can_read_the_file(tmp_path):
    write_unlabelled(tmp_path)
    cfg = dataset_cfg(tmp_path, metainfo=dict(classes=CLASSES))
    own, theirs = (
        DATASETS.build(dict(cfg, type=kind))
        for kind in ('UnlabeledCocoDataset', 'CocoDataset')
    )
    assert own.metainfo == theirs.metainfo and len(own) == len(theirs) == 4
    for i in range(4):
        assert own.get_data_info(i) == theirs.get_data_info(i)


def test_annotations_of_whatever_form_are_ignored(tmp_path):
    path = write_unlabelled(tmp_path, categories=False)
    edit(path, lambda content: content.update(annotations=[dict(id=1, caption='x')]))
    check(tmp_path)
    assert build(tmp_path).get_data_info(0)['instances'] == []


def test_small_images_may_be_filtered(tmp_path):
    path = write_unlabelled(tmp_path, categories=False)
    edit(path, lambda content: content['images'][1].update(height=10))
    assert len(build(tmp_path, filter_cfg=dict(min_size=32))) == 3


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda c: c.pop('images'), 'lacks a list of images'),
        (lambda c: c['images'].clear(), 'lists no images'),
        (lambda c: c['images'][2].pop('width'), r"images\[2\] lacks 'width'"),
        (lambda c: c['images'].append(c['images'][0]), 'several images with the id'),
        (lambda c: c.update(categories=['cat']), 'categories that are no list of obj'),
        (lambda c: c.update(categories=[dict(id=1, name='cat')]), "has no 'person'"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_early_and_when_it_is_read(
    tmp_path, change, message
):
    edit(write_unlabelled(tmp_path, categories=False), change)
    with pytest.raises(InputError, match=message):
        check(tmp_path)
    with pytest.raises(InputError, match=message):
        build(tmp_path)


def test_a_missing_image_is_found_before_a_run(tmp_path):
    write_unlabelled(tmp_path, categories=False)
    (tmp_path / 'unlabelled' / '2.png').unlink()
    with pytest.raises(InputError, match='1 of 4 .*2.png'):
        check(tmp_path)


def test_classes_that_a_file_with_categories_does_not_have_are_refused(tmp_path):
    write_unlabelled(tmp_path)
    with pytest.raises(InputError, match="has no 'person'.* categories are 'red', 'g"):
        build(tmp_path)


@pytest.mark.parametrize('write', [write_pretraining, write_mixed])
def test_a_run_needs_no_categories_of_images_without_labels(
    monkeypatch, tmp_path, write
):
    in_place(monkeypatch, tmp_path)
    extra = """
whole = train_dataloader['dataset']
whole.get('datasets', [whole])[-1]['type'] = 'UnlabeledCocoDataset'
"""
    config = write(tmp_path, extra)
    write_unlabelled(tmp_path, categories=False)
    parts = Config.fromfile(config).train_dataloader.dataset
    assert parts.get('datasets', [parts])[-1].type == UnlabeledCocoDataset.__name__
    call_tool('train', config, '--work-dir', tmp_path / 'run')
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()


@pytest.mark.parametrize(
    'config', ['lfi/mask-rcnn_vit-s_lfi-mixed_coco', 'lfi_pretrain/vit-s_lfi_coco']
)
def test_our_configs_take_cocos_file_as_it_is(config):
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs' / f'{config}.py')
    (part,) = (
        part
        for part in cfg.train_dataloader.dataset.datasets
        if 'unlabeled2017' in part.ann_file
    )
    assert part.type == UnlabeledCocoDataset.__name__


@pytest.mark.parametrize('filter_cfg', [dict(filter_empty_gt=True), dict(min_size=999)])
def test_a_filter_that_leaves_no_image_is_named(tmp_path, filter_cfg):
    write_unlabelled(tmp_path, categories=False)
    with pytest.raises(InputError, match=r'filter_cfg=.* leaves no image'):
        build(tmp_path, filter_cfg=filter_cfg)
