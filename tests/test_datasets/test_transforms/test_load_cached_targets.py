"""Stored targets, on what augmentation left of their image."""

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, TRANSFORMS
from torch.utils.data import DataLoader

from lfi_mmdet.datasets.target_store import MissingTargetsError
from lfi_mmdet.datasets.transforms import LoadCachedTargets, warp_maps
from lfi_mmdet.engine.preflight import InputError
from tests.stores import some_record, write_store

SHAPE = (40, 60)
CROP = np.array([[1, 0, -15], [0, 1, -5], [0, 0, 1]], np.float32)
AWAY = np.array([[1, 0, -60], [0, 1, 0], [0, 0, 1]], np.float32)


@pytest.fixture
def store(tmp_path):
    records = {
        1: some_record((0, 2)),
        2: some_record((), seed=1),
        3: some_record((1,), seed=2),
    }
    return write_store(tmp_path / 'store', records)


def results_of(img_id=1, labels=(0, 2), **changes):
    results = dict(
        img_id=img_id,
        img_path=f'{img_id}.jpg',
        ori_shape=SHAPE,
        img_shape=SHAPE,
        gt_bboxes_labels=np.array(labels, np.int64),
        gt_ignore_flags=np.zeros(len(labels), bool),
    )
    return {**results, **changes}


def load(store, results, **options):
    return LoadCachedTargets(store=store, **options)(results)['interactions']


def test_targets_come_as_they_were_stored(store):
    targets, record = load(store, results_of()), some_record((0, 2))
    assert targets.texts.tolist() == [0, 2] and targets.texts.dtype == torch.int64
    np.testing.assert_allclose(targets.maps, record.maps, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(targets.relations, record.relations, atol=1e-3)
    assert 'features' not in targets
    assert targets.maps.dtype == targets.relations.dtype == torch.float32


def test_features_come_where_the_store_has_them(tmp_path):
    record = some_record((0, 2), channels=3)
    store = write_store(tmp_path / 'store', {1: record})
    targets = load(store, results_of(labels=(2,)))
    np.testing.assert_allclose(targets.features, record.features[:, 1:], rtol=2e-3)
    assert 'relations' not in targets and targets.texts.tolist() == [2]


def test_maps_are_warped_by_the_homography(store):
    plain = load(store, results_of())
    moved = load(store, results_of(homography_matrix=CROP, img_shape=(30, 40)))
    expected, _ = warp_maps(plain.maps.numpy(), CROP, SHAPE, (30, 40))
    np.testing.assert_allclose(moved.maps, expected, rtol=1e-4)
    assert (moved.maps - plain.maps).abs().max() > 0.01
    assert moved.maps.is_contiguous()
    torch.testing.assert_close(moved.relations, plain.relations)


def test_only_classes_that_are_still_in_the_picture_are_kept(store):
    targets, record = load(store, results_of(labels=(2,))), some_record((0, 2))
    assert targets.texts.tolist() == [2] and targets.maps.shape[1] == 1
    np.testing.assert_allclose(
        targets.relations, record.relations[:, 1:, 1:], atol=1e-3
    )
    results = results_of(labels=(0, 2))
    results['gt_ignore_flags'][:] = [True, False]
    assert load(store, results).texts.tolist() == [2]
    assert load(store, results_of(labels=())).maps.shape == (2, 0, 4, 6)
    assert load(store, results_of(2, labels=())).maps.shape == (2, 0, 4, 6)


def test_a_text_that_has_nothing_in_the_picture_is_dropped(tmp_path):
    record = some_record((0, 2))
    record.maps[1, 0] = 0
    record.maps[1, 0, -1, -1] = 1
    store = write_store(tmp_path / 'store', {1: record})
    crop = results_of(homography_matrix=np.eye(3), img_shape=(10, 20))
    targets = load(store, crop)
    assert targets.texts.tolist() == [2]
    assert targets.maps.shape == (2, 1, 4, 6) and targets.relations.shape == (2, 1, 1)


def test_free_words_stay_whatever_the_annotations_say(tmp_path):
    record = some_record((0, 3, 5))
    made = dict(type='CLIPTeacher', texts='captions', max_free=4)
    store = write_store(tmp_path / 'store', {1: record}, teacher=made)
    assert load(store, results_of(labels=(1,))).texts.tolist() == [3, 5]
    assert load(store, results_of(labels=(0, 1))).texts.tolist() == [0, 3, 5]


@pytest.mark.parametrize('texts', ['present', 'all'])
@pytest.mark.parametrize('made', ['ground_truth', 'teacher', 'all'])
@pytest.mark.parametrize('rule', [None, 'ground_truth', 'teacher', 'all'])
def test_a_rule_is_kept_or_refused(tmp_path, texts, made, rule):
    """It must not depend on what the store happens to hold."""
    record = some_record((0, 1, 2) if texts == 'all' else (0, 2))
    if texts == 'all' and made != 'all':
        record.present[1] = False
    store = write_store(
        tmp_path / 'store',
        {1: record},
        teacher=dict(type='CLIPTeacher', present=made),
        texts=texts,
    )
    possible = {made} | ({'ground_truth', 'all'} if texts == 'all' else set())
    if made == 'all':
        possible |= {'ground_truth'}
    results = results_of(labels=(2,))
    if rule not in {*possible, None}:
        with pytest.raises(InputError, match=f'present={rule!r} cannot be told'):
            load(store, results, present=rule)
        return
    expected = dict(ground_truth=[2], teacher=[0, 2], all=record.texts.tolist())[
        rule or made
    ]
    assert load(store, results, present=rule).texts.tolist() == expected


def test_what_a_faulty_teacher_missed_stays_missing(tmp_path):
    record = some_record((0, 1))
    record.present[0] = False
    made = dict(type='GroundTruthTeacher', missing=0.5)
    store = write_store(tmp_path / 'store', {1: record}, teacher=made)
    assert load(store, results_of(labels=(0, 1, 2))).texts.tolist() == [1]


def test_of_teachers_that_disagree_counts_what_they_found(tmp_path):
    record = some_record((0, 1))
    made = dict(
        type='EnsembleTeacher',
        teachers=[
            dict(type='CLIPTeacher', present='teacher'),
            dict(type='CoCaTeacher'),
        ],
    )
    store = write_store(tmp_path / 'store', {1: record}, teacher=made)
    assert load(store, results_of(labels=(2,))).texts.tolist() == [0, 1]


def test_classes_the_store_knows_nothing_of_are_an_error(store):
    with pytest.raises(InputError, match='1.jpg shows class 1.*annotations'):
        load(store, results_of(labels=(0, 1)))


def test_an_image_the_store_has_not_is_an_error(store):
    with pytest.raises(MissingTargetsError, match='no targets of image 7'):
        load(store, results_of(7))


def test_annotations_are_needed_where_they_decide(store):
    results = results_of()
    del results['gt_bboxes_labels']
    with pytest.raises(InputError, match='1.jpg has no gt_bboxes_labels'):
        load(store, results)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(img_shape=(30, 60)), r'cropped or resized from \(40, 60\) to \(30, 60\)'),
        (dict(flip=True), 'flipped'),
        (dict(homography_matrix=np.zeros((3, 3))), 'onto a line.*1.jpg'),
        (dict(homography_matrix=AWAY), 'leaves nothing to see'),
    ],
)
def test_geometry_that_cannot_be_is_an_error(store, changes, message):
    with pytest.raises(InputError, match=message):
        load(store, results_of(**changes))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(present='labels'), r"present='labels' is not known; choose from \('gr"),
        (dict(allowed='MyFlip'), r"allowed='MyFlip' is no list; write \('MyFlip',\)"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LoadCachedTargets('store', **options)


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(InputError, match='is no store of targets'):
        load(str(tmp_path / 'none'), results_of())


def test_copies_in_other_processes_are_the_same_transform(store):
    transform = LoadCachedTargets(store)
    transform(results_of())
    for copied in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert copied.token == transform.token
        assert copied(results_of())['interactions'].loader == transform.token
    assert LoadCachedTargets(store).token != transform.token


# -- on the way to the model ---------------------------------------------------------
def packed(store, img_id=1, **changes):
    results = results_of(img_id, **changes)
    results.update(img=np.zeros((*results['img_shape'], 3), np.uint8))
    results = LoadCachedTargets(store)(results)
    return TRANSFORMS.build(dict(type='PackInteractionInputs'))(results)


def test_the_model_gets_the_targets_with_the_ground_truth(store):
    data = packed(store)
    sample = data['data_samples']
    assert sample.gt_instances.labels.tolist() == [0, 2]
    assert sample.interactions.texts.tolist() == [0, 2]
    preprocessor = MODELS.build(dict(type='DetDataPreprocessor'))
    batch = dict(inputs=[data['inputs']], data_samples=[sample])
    moved = preprocessor(batch, training=True)['data_samples'][0].interactions
    assert moved.maps.shape == (2, 2, 4, 6)
    # tensors of the sample follow it to a device, meta information does not
    assert sample.to('meta').interactions.maps.device.type == 'meta'


def test_packing_without_targets_is_an_error():
    pack = TRANSFORMS.build(dict(type='PackInteractionInputs'))
    with pytest.raises(InputError, match='LoadCachedTargets'):
        pack(results_of(img=np.zeros((*SHAPE, 3), np.uint8)))


class Images:
    """Images 1 to 3, as a dataset, with a transform that was used before."""

    def __init__(self, store):
        self.load = LoadCachedTargets(store)
        self.load(results_of())

    def __len__(self):
        return 60

    def __getitem__(self, index):
        labels = ((0, 2), (), (1,))[index % 3]
        results = self.load(results_of(index % 3 + 1, labels))
        return index, results['interactions'], os.getpid()


def test_workers_read_the_same_as_the_process_itself(store):
    dataset = Images(store)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=list)
    pids = set()
    for index, targets, pid in (item for batch in loader for item in batch):
        expected = dataset[index][1]
        torch.testing.assert_close(targets.maps, expected.maps, rtol=0, atol=0)
        assert targets.loader == dataset.load.token
        pids.add(pid)
    assert len(pids) == 2 and os.getpid() not in pids
