"""DatasetCheckHook, on real datasets and a detector that is never run."""

import json
from types import SimpleNamespace

import pytest
from mmcv.transforms import RandomChoice
from mmdet.datasets import CocoDataset, ConcatDataset
from mmdet.models import BBoxHead, FCNMaskHead
from mmdet.models.dense_heads import RPNHead
from mmengine.dataset import RepeatDataset
from torch import nn

from lfi_mmdet.engine.hooks import DatasetCheckHook, dataset_check_hook
from lfi_mmdet.engine.preflight import InputError
from tests.tiny import CLASSES, write_tiny_coco


def detector(num_classes=3):
    model = nn.Module()
    model.rpn_head = RPNHead(4, feat_channels=4)
    model.roi_head = nn.Module()
    model.roi_head.bbox_head = BBoxHead(
        with_avg_pool=True, in_channels=4, num_classes=num_classes
    )
    model.roi_head.mask_head = FCNMaskHead(
        num_convs=1, in_channels=4, conv_out_channels=4, num_classes=num_classes
    )
    return model


def dataset(root, classes=CLASSES, **changes):
    return CocoDataset(
        data_root=str(root),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=classes),
        **changes,
    )


def runner(train, val=None, num_classes=3):
    return SimpleNamespace(
        model=detector(num_classes),
        train_dataloader=SimpleNamespace(dataset=train),
        val_loop=None if val is None else object(),
        val_dataloader=SimpleNamespace(dataset=val),
        test_dataloader=SimpleNamespace(dataset=val),
    )


def check(*args, **kwargs):
    DatasetCheckHook().before_train(runner(*args, **kwargs))


@pytest.fixture
def root(tmp_path):
    write_tiny_coco(tmp_path)
    return tmp_path


def test_a_good_dataset_passes_also_in_wrappers(root):
    good = dataset(root)
    check(good, good)
    check(ConcatDataset([good, good]), RepeatDataset(good, 2))


def test_a_class_without_a_category_is_named(root):
    bad = dataset(root, ('red', 'gren', 'blue'))
    message = (
        r'train_dataloader\.dataset\.dataset\.metainfo\.classes: .*train\.json has no '
        "'gren'; its categories are 'red', 'green', 'blue'"
    )
    with pytest.raises(InputError, match=message):
        check(RepeatDataset(bad, 2))


def test_classes_in_another_order_are_refused_in_validation_too(root):
    bad = dataset(root, CLASSES[::-1])
    with pytest.raises(InputError, match=r'val_dataloader\.dataset\.metainfo\.classes'):
        check(dataset(root), bad)


def test_missing_images_are_named_unless_that_is_switched_off(root):
    (root / 'train' / '2.png').unlink()
    bad = runner(dataset(root))
    with pytest.raises(InputError, match=r"1 of 4 images .*: '.*2\.png'"):
        DatasetCheckHook().before_train(bad)
    DatasetCheckHook(images=False).before_train(bad)


def test_a_dataset_that_the_filter_emptied_is_refused(root):
    empty = dataset(root, test_mode=True, indices=[], serialize_data=False)
    with pytest.raises(InputError, match=r'no image of .*train\.json is left'):
        check(empty)


def test_every_head_with_another_number_of_classes_is_named(root):
    with pytest.raises(InputError) as caught:
        check(dataset(root), num_classes=80)
    assert str(caught.value) == (
        'train_dataloader.dataset has 3 classes (red, green, blue), but '
        'model.roi_head.bbox_head.num_classes=80 and '
        'model.roi_head.mask_head.num_classes=80'
    )


def test_the_dataset_is_checked_before_testing(root):
    with pytest.raises(InputError, match=r'test_dataloader\.dataset has 3 classes'):
        DatasetCheckHook().before_test(runner(None, dataset(root), num_classes=2))


def test_other_processes_stop_with_the_message_of_the_first(root, monkeypatch):
    said = []

    def broadcast(data):
        said.append(list(data))
        data[0] = 'what the first process found'

    monkeypatch.setattr(dataset_check_hook, 'is_main_process', lambda: False)
    monkeypatch.setattr(dataset_check_hook, 'broadcast_object_list', broadcast)
    with pytest.raises(InputError, match='what the first process found'):
        check(dataset(root))
    assert said == [[None]]


def test_the_first_process_tells_the_others_before_it_stops(root, monkeypatch):
    said = []
    monkeypatch.setattr(dataset_check_hook, 'broadcast_object_list', said.extend)
    with pytest.raises(InputError, match='num_classes=80'):
        check(dataset(root), num_classes=80)
    assert 'num_classes=80' in said[0]


def test_annotations_are_read_anew_so_that_it_needs_no_flag_of_the_tools(root):
    good = dataset(root)
    content = json.loads((root / 'train.json').read_text())
    content['categories'].pop()
    (root / 'train.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no 'blue'"):
        check(good)


class Reader:
    """A transform with a file of its own."""

    def __init__(self, problem=None):
        self.problem, self.calls = problem, []

    def check_dataset(self, dataset, key):
        self.calls.append(('check_dataset', len(dataset), key))
        if self.problem:
            raise InputError(f'{key}: {self.problem}')

    def load_shared(self, key):
        self.calls.append(('load_shared', key))

    def __call__(self, results):
        return results


def test_transforms_check_the_dataset_that_they_are_in(root):
    plain, inner = Reader(), Reader()
    steps = [plain, RandomChoice([[plain], [Reader(), inner]])]
    good = dataset(root, pipeline=steps)
    check(RepeatDataset(good, 2), dataset(root))
    key = 'train_dataloader.dataset.dataset.pipeline'
    assert plain.calls[:2] == [
        ('check_dataset', 4, f'{key}.0'),
        ('check_dataset', 4, f'{key}.1.transforms.0.transforms.0'),
    ]
    where = f'{key}.1.transforms.1.transforms.1'
    assert inner.calls == [('check_dataset', 4, where), ('load_shared', where)]


def test_what_a_transform_finds_stops_the_run_before_workers_start(root):
    reader = Reader('the file is of another dataset')
    bad = dataset(root, pipeline=[reader])
    message = r'^val_dataloader\.dataset\.pipeline\.0: the file is of another dataset'
    with pytest.raises(InputError, match=message):
        check(dataset(root), bad)
    assert 'load_shared' not in [call[0] for call in reader.calls]


def test_every_process_loads_what_its_workers_share(root, monkeypatch):
    monkeypatch.setattr(dataset_check_hook, 'is_main_process', lambda: False)
    reader = Reader()
    check(dataset(root, pipeline=[reader]))
    assert reader.calls == [('load_shared', 'train_dataloader.dataset.pipeline.0')]


def test_stages_of_a_region_proposal_network_have_no_classes(root):
    model = detector()
    model.rpn_head = nn.Module()
    model.rpn_head.stages = nn.ModuleList([RPNHead(4, feat_channels=4)])
    dataset_check_hook.check_heads(model, dataset(root), 'train_dataloader.dataset')
    model.roi_head.stages = nn.ModuleList([detector(4).roi_head.bbox_head])
    with pytest.raises(InputError, match=r'roi_head\.stages\.0\.num_classes=4'):
        dataset_check_hook.check_heads(model, dataset(root), 'train')
