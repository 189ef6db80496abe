"""Captions beside the instances: read once, kept by id, and checked at the start."""

import copy
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from mmcv.transforms import Compose
from mmdet.datasets import CocoDataset
from mmdet.registry import TRANSFORMS

from lfi_mmdet.datasets.transforms import LoadCaptions, load_captions
from lfi_mmdet.engine.preflight import InputError
from tests.tiny import CLASSES, write_tiny_coco

DATA = Path(__file__).parents[4] / 'shared' / 'data' / 'coco_mini.tar'
META = ('img_id', 'captions')


def write_captions(path, captions):
    """Write (image id, caption) pairs as COCO does."""
    entries = [
        dict(id=i, image_id=img_id, caption=caption)
        for i, (img_id, caption) in enumerate(captions)
    ]
    path.write_text(json.dumps(dict(images=[], annotations=entries)))
    return str(path)


@pytest.fixture
def root(tmp_path):
    """Four images with the ids 1 to 4, and their captions."""
    write_tiny_coco(tmp_path)
    captions = [(i % 4 + 1, f'caption {i} of {i % 4 + 1}') for i in range(8)]
    write_captions(tmp_path / 'captions.json', captions)
    return tmp_path


def dataset(root, meta_keys=META, **changes):
    options = dict(ann_file=str(root / 'captions.json'))
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='LoadCaptions', **{**options, **changes.pop('captions', {})}),
        dict(type='PackDetInputs', meta_keys=meta_keys),
    ]
    options = dict(
        filter_cfg=dict(filter_empty_gt=True), pipeline=steps, serialize_data=False
    )
    return CocoDataset(
        data_root=str(root),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES),
        **{**options, **changes},
    )


def check(data, key='pipeline.2'):
    data.pipeline.transforms[2].check_dataset(data, key)


def test_an_image_gets_its_captions_in_the_order_of_the_file(root):
    step = TRANSFORMS.build(
        dict(type='LoadCaptions', ann_file=str(root / 'captions.json'))
    )
    results = step(dict(img_id=2, other='kept'))
    assert results['captions'] == ['caption 1 of 2', 'caption 5 of 2']
    assert results['other'] == 'kept'


def test_captions_reach_the_data_samples_through_worker_processes(root):
    loader = torch.utils.data.DataLoader(
        dataset(root), batch_size=None, num_workers=2, collate_fn=lambda x: x
    )
    samples = [item['data_samples'] for item in loader]
    assert {s.img_id: s.captions for s in samples} == {
        i: [f'caption {i - 1} of {i}', f'caption {i + 3} of {i}'] for i in range(1, 5)
    }


def test_a_process_parses_the_file_once_and_anew_if_it_changes(root, monkeypatch):
    read = []
    get = load_captions.fileio.get
    monkeypatch.setattr(
        load_captions.fileio, 'get', lambda *args: read.append(args) or get(*args)
    )
    path = str(root / 'captions.json')
    first, second = LoadCaptions(path), LoadCaptions(path)
    first(dict(img_id=1))
    sent = pickle.loads(pickle.dumps(first))
    for step in (first, second, copy.deepcopy(first), sent):
        for img_id in (1, 2):
            step(dict(img_id=img_id))
    assert len(read) == 1
    write_captions(root / 'captions.json', [(1, 'another caption')] * 3)
    assert len(LoadCaptions(path)(dict(img_id=1))['captions']) == 3
    assert len(read) == 2


def test_captions_are_not_sent_to_other_processes(root):
    step = LoadCaptions(str(root / 'captions.json'))
    before = len(pickle.dumps(step))
    step.load_shared()
    assert len(pickle.dumps(step)) == before


def test_any_text_and_any_id_survive_packing():
    texts = {'a/1': ['Zwölf "Bären" \\ \n\u2028', '\0', '猫'], 7: ['x'], -3: []}
    packed = load_captions.Captions(texts)
    assert dict(packed) == texts and len(packed) == 3 and 8 not in packed


def test_images_without_captions_stop_the_run_or_get_an_empty_list(root):
    path = write_captions(root / 'some.json', [(1, 'a dog'), (3, ' \n')])
    message = r"some\.json has no captions of image id 3; .*missing='empty'"
    with pytest.raises(InputError, match=message):
        LoadCaptions(path)(dict(img_id=3))
    step = LoadCaptions(path, missing='empty')
    assert step(dict(img_id=3))['captions'] == []
    assert step(dict(img_id=1))['captions'] == ['a dog']


@pytest.mark.parametrize('name', ['missing', 'foreign'])
def test_a_bad_option_is_named_with_its_choices(name):
    with pytest.raises(ValueError, match=f"LoadCaptions.{name}='skip'.*'error'"):
        LoadCaptions('captions.json', **{name: 'skip'})


@pytest.mark.parametrize(
    'content, complaint',
    [
        (None, 'no file .*captions.json'),
        ('', r'is empty \(0 bytes\)'),
        ('{"annotations": [{"image_id": 1, "cap', 'is no JSON, or was cut off'),
        (b'\xff\xfe\x00', 'is no JSON, or was cut off'),
        ('[1, 2]', 'no COCO caption file; it lacks a list of annotations'),
        ('{"annotations": [3]}', r"annotations\[0\] lacks 'image_id' and 'caption'"),
        ('{"annotations": [{"image_id": 1, "bbox": []}]}', 'file of the instances?'),
        ('{"annotations": [{"image_id": 1, "caption": 5}]}', 'caption=5 is no text'),
        ('{"annotations": []}', 'holds no captions'),
        ('{"annotations": [{"image_id": 1, "caption": " "}]}', 'holds no captions'),
    ],
)
def test_a_file_that_cannot_be_used_is_named(root, content, complaint):
    path = root / 'captions.json'
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    with pytest.raises(InputError, match=complaint) as caught:
        check(dataset(root), 'train_dataloader.dataset.pipeline.2')
    message = str(caught.value)
    assert message.startswith('train_dataloader.dataset.pipeline.2.ann_file: ')
    assert str(path) in message


def test_captions_of_another_split_are_refused_whatever_the_options(root):
    write_captions(root / 'captions.json', [(i, 'a dog') for i in range(11, 16)])
    for options in (dict(), dict(foreign='ignore', missing='empty')):
        with pytest.raises(InputError) as caught:
            check(dataset(root, captions=options))
        assert str(caught.value) == (
            f'pipeline.2.ann_file: none of the 5 images with captions in {root}/'
            f'captions.json is one of the 4 images of {root}/train.json (ids 11, 12, '
            '13 and 2 more against 1, 2, 3 and 1 more); take the captions of the same '
            'split'
        )


def test_captions_that_are_partly_of_other_images_are_refused_unless_allowed(root):
    write_captions(root / 'captions.json', [(i, 'a dog') for i in (9, 1, 2, 3, 4, 8)])
    message = (
        r'2 of the 6 images with captions in .*captions\.json are not among the 4 of '
        r".*train\.json \(ids 9, 8\).*foreign='ignore'"
    )
    with pytest.raises(InputError, match=message):
        check(dataset(root))
    check(dataset(root, captions=dict(foreign='ignore')))


def test_captions_of_images_that_the_filter_left_out_are_no_strangers(root):
    content = json.loads((root / 'train.json').read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 2]
    (root / 'train.json').write_text(json.dumps(content))
    filtered = dataset(root)
    assert len(filtered) == 3
    check(filtered)
    check(dataset(root, indices=2))


def test_images_without_captions_are_refused_unless_allowed(root):
    write_captions(root / 'captions.json', [(4, 'a dog'), (2, 'a cat')])
    message = (
        r'has no captions for 2 of the 4 images of .*train\.json \(ids 1, 3\).*'
        "missing='empty'"
    )
    with pytest.raises(InputError, match=message):
        check(dataset(root))
    check(dataset(root, captions=dict(missing='empty')))


def test_a_pipeline_that_drops_the_captions_is_refused(root):
    message = r"PackDetInputs drops the captions; .*\('img_id', 'captions'\)"
    with pytest.raises(InputError, match=message):
        check(dataset(root, meta_keys=('img_id',)))


def test_a_branch_that_drops_the_captions_is_refused(root):
    data = dataset(root)
    pack = dict(type='PackDetInputs', meta_keys=('img_id',))
    branches = dict(type='MultiBranch', branch_field=['sup'], sup=pack)
    data.pipeline.transforms[3:] = Compose([branches]).transforms
    with pytest.raises(InputError, match='PackDetInputs drops the captions'):
        check(data)


def test_a_dataset_without_ids_is_refused(root):
    class Nameless(CocoDataset):
        def parse_data_info(self, raw_data_info):
            info = super().parse_data_info(raw_data_info)
            info.pop('img_id')
            return info

    nameless = Nameless(
        data_root=str(root), ann_file='train.json', data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES), test_mode=True, pipeline=[],
    )  # fmt: skip
    with pytest.raises(InputError, match='Nameless gives its images no img_id'):
        LoadCaptions(str(root / 'captions.json')).check_dataset(nameless, 'pipeline.0')


@pytest.mark.skipif(not DATA.exists(), reason=f'{DATA} is not there')
def test_real_captions_and_instances_fit(tmp_path):
    with tarfile.open(DATA) as tar:
        names = [n for n in tar.getnames() if n.endswith('.json')]
        tar.extractall(tmp_path, members=names, filter='data')
    folder = tmp_path / 'coco_mini' / 'annotations'

    def step_and_data(split, captions_of, **options):
        step = LoadCaptions(str(folder / f'captions_{captions_of}2017.json'), **options)
        data = CocoDataset(
            ann_file=str(folder / f'instances_{split}2017.json'),
            data_prefix=dict(img=''), pipeline=[],
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
        )  # fmt: skip
        return step, data

    step, data = step_and_data('val', 'val')
    step.check_dataset(data, 'pipeline.2')
    assert len(step(dict(img_id=data.get_data_info(0)['img_id']))['captions']) == 5
    step, data = step_and_data('train', 'train', missing='empty')
    step.check_dataset(data, 'pipeline.2')
    step, data = step_and_data('train', 'train')
    with pytest.raises(InputError, match=r'no captions for \d+ of the \d+ images'):
        step.check_dataset(data, 'pipeline.2')
    step, data = step_and_data('val', 'train')
    with pytest.raises(InputError, match='none of the 77 images with captions'):
        step.check_dataset(data, 'pipeline.2')
