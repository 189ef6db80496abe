"""Run a teacher over a dataset, be killed, go on, and refuse what does not fit."""

import copy
import functools
import json
import multiprocessing
import os
import re
import signal

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from lfi_mmdet.datasets.target_store import (
    StoreMeta,
    TargetStoreError,
    TargetStoreReader,
    shards,
)
from lfi_mmdet.engine import caching
from lfi_mmdet.engine.caching import cache_targets, report_text
from lfi_mmdet.engine.caching_options import CachingOptions, default_folder
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.structures import InteractionTargets
from tests.tiny import tiny_config_text, write_tiny_coco

TEACHER = dict(type='BlockTeacher')


class BlockTeacher(FrozenTeacher):
    """Maps are a function of the colours of 4 x 4 blocks; with weights to hash."""

    #: What tests change behind the back of the config
    seed, kill_at = 1, None

    def __init__(self, size=16, gain=1.0):
        super().__init__(view=dict(size=size))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.freeze(nn.Conv2d(3, 6, 4, 4))
        self.gain, self.seen = gain, 0

    num_layers = 2
    feature_dims = 4

    def encode_texts(self, class_names):
        """Nothing to encode."""

    def interact(self, images, present):
        self.seen += len(images)
        if self.kill_at is not None and self.seen >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        maps = self.gain * self.network(images).unflatten(1, (2, 3))
        return InteractionTargets(
            maps=maps.flatten(3).softmax(-1).view_as(maps),
            present=present,
            features=maps.flatten(3)[..., :4].contiguous(),
        )


@pytest.fixture(autouse=True)
def teachers(monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, 'BlockTeacher', BlockTeacher)
    monkeypatch.setattr(shards.hold, '__defaults__', (0.5,))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Twelve images, of which number 4 shows nothing."""
    root = tmp_path_factory.mktemp('data')
    path = write_tiny_coco(root, num_images=12)
    content = json.loads(path.read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 4]
    path.write_text(json.dumps(content))
    return root


@functools.cache
def read_config(root, extra):
    (root / 'tiny.py').write_text(tiny_config_text(root, extra=extra))
    return Config.fromfile(root / 'tiny.py')


def config(root, teacher=TEACHER, extra=''):
    cfg = copy.deepcopy(read_config(root, extra))
    cfg.model.teacher = teacher
    return cfg


def cache(root, out, teacher=TEACHER, extra='', **options):
    options = dict(batch_size=3, **options)
    return cache_targets(
        config(root, teacher, extra), CachingOptions(str(out), **options)
    )


def contents(out):
    """All records, by image."""
    with TargetStoreReader(out) as reader:
        return {img_id: reader.get(img_id) for img_id in reader.keys()}


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
    """A store that was made without interruption."""
    out = tmp_path_factory.mktemp('whole')
    MODELS.module_dict['BlockTeacher'] = BlockTeacher
    cache(root, out)
    return out


def test_every_image_is_stored_once_also_one_that_shows_nothing(whole):
    meta, found = StoreMeta.read(whole), contents(whole)
    assert sorted(found) == list(range(1, 13))
    assert meta.complete and meta.num_images == 12
    assert meta.shards == {'shard_000.lmdb': 12}
    assert found[1].texts.tolist() == [0, 1] and found[2].texts.tolist() == [1, 2]
    assert found[4].texts.tolist() == [] and found[4].maps.shape == (2, 0, 4, 4)


def test_maps_are_those_of_the_original_images_whatever_training_does(root, whole):
    cfg = config(root)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    teacher = BlockTeacher()
    teacher.set_class_names(('red', 'green', 'blue'))
    flips = (
        'train_pipeline.insert(3, dict(type="RandomFlip", prob=1.0))\n'
        'train_pipeline.insert(3, dict(type="RandomCrop", crop_size=(30, 30)))\n'
    )
    dataset = caching.Source.build(
        config(root, extra=flips), 'train', torch.device('cpu')
    )
    sample = dataset.dataset[0]
    assert sample['inputs'].shape == (3, 64, 64)
    batch = preprocessor(
        dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    )
    targets = teacher(
        batch['inputs'], batch['data_samples'], preprocessor, compact=False
    )
    record = contents(whole)[1]
    errors = np.abs(record.maps - targets.maps[0, :, :2].numpy()).sum((-2, -1)) / 2
    assert errors.max() <= StoreMeta.read(whole).report['tv_max'] * 1.01 < 0.01
    a, b = targets.features[0, :, 0], targets.features[0, :, 1]
    cosines = torch.cosine_similarity(a, b, -1)
    np.testing.assert_allclose(record.relations[:, 0, 1], cosines, atol=5e-4)


def test_the_store_says_what_it_was_made_with(root, whole):
    meta = StoreMeta.read(whole)
    assert meta.teacher == dict(type='BlockTeacher')
    assert meta.weights == BlockTeacher().weights_hash()
    assert meta.classes == ['red', 'green', 'blue'] and meta.num_texts == 3
    assert meta.view[0]['size'] == [16, 16] and meta.grid == [4, 4]
    assert meta.num_layers == 2 and meta.relations and meta.feature_dims is None
    assert meta.dataset['ann_file'] == 'train.json'
    assert meta.dataset['num_images'] == 12


def test_sizes_and_errors_are_measured_and_told(whole):
    meta = StoreMeta.read(whole)
    size = (whole / 'shard_000.lmdb').stat().st_size
    assert meta.report['bytes'] == size
    assert meta.report['mb_per_1000_images'] == pytest.approx(size / 12e3, rel=1e-3)
    assert meta.report['coco_train2017_gb'] == pytest.approx(
        size / 12 * 118_287 / 1e9, rel=1e-3
    )
    assert 0 < meta.report['tv_mean'] < meta.report['tv_max'] < 0.006
    assert meta.report['texts_per_image'] == pytest.approx(22 / 12, rel=1e-3)
    text = report_text(meta, 'OUT')
    assert 'MB per 1,000 images; COCO train2017 (118,287 images) would take' in text


def test_a_finished_store_is_left_alone(root, tmp_path):
    cache(root, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    meta = cache(root, tmp_path)
    assert meta.complete
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_kill_9_in_the_middle_and_another_run_give_the_same_store(
    root, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        caching.TargetStoreWriter.__init__, '__defaults__', (0, 3, 2**26)
    )
    # the first image is read once before, so that the third batch is not finished
    with monkeypatch.context() as patch:
        patch.setattr(BlockTeacher, 'kill_at', 10)
        process = multiprocessing.get_context('fork').Process(
            target=cache, args=(root, tmp_path)
        )
        process.start()
        process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(TargetStoreError, match='6 of 12 images'):
        TargetStoreReader(tmp_path)

    meta = cache(root, tmp_path)
    assert meta.shards == {'shard_000.lmdb': 6, 'shard_001.lmdb': 6}
    assert contents(tmp_path) == contents(whole)
    for name in ('tv_mean', 'tv_max', 'texts_per_image'):
        assert meta.report[name] == StoreMeta.read(whole).report[name]


def test_a_few_images_first_and_the_others_later(root, whole, tmp_path):
    assert cache(root, tmp_path, max_images=5).num_images == 5
    assert sorted(contents(tmp_path)) == [1, 2, 3, 4, 5]
    assert cache(root, tmp_path).num_images == 12
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    'teacher, options, message',
    [
        (
            dict(type='GroundTruthTeacher'),
            {},
            'teacher: BlockTeacher in the store, Gro',
        ),
        (dict(TEACHER, gain=2.0), {}, 'teacher.gain: left at its default in the store'),
        (
            dict(TEACHER, size=32),
            {},
            r'image size: \[16, 16\] in the store, \[32, 32\]',
        ),
        (
            TEACHER,
            dict(dtype='float16'),
            r'--dtype\): uint8 in the store, float16 here',
        ),
        (TEACHER, dict(texts='all'), r'--texts\): present in the store, all here'),
        (TEACHER, dict(features=True), 'whether features are kept'),
    ],
)
def test_a_store_of_another_teacher_is_not_continued(
    root, whole, teacher, options, message
):
    before = contents(whole)
    with pytest.raises(TargetStoreError, match=message):
        cache(root, whole, teacher, **options)
    assert contents(whole) == before


def test_other_weights_of_the_same_teacher_are_found_out(root, whole, monkeypatch):
    monkeypatch.setattr(BlockTeacher, 'seed', 2)
    with pytest.raises(TargetStoreError, match='weights: sha256 .* in the store'):
        cache(root, whole)


def test_other_annotations_are_found_out(root, whole, tmp_path):
    write_tiny_coco(tmp_path, num_images=12)
    message = r'dataset: train.json \(sha256 .*\) in the store, train.json'
    with pytest.raises(TargetStoreError, match=message):
        cache(tmp_path, whole)


def test_targets_of_another_version_are_found_out(root, whole, monkeypatch):
    real = caching.describe

    def later(*args):
        meta = real(*args)
        meta.targets_version += 1
        return meta

    monkeypatch.setattr(caching, 'describe', later)
    with pytest.raises(
        TargetStoreError, match='TARGETS_VERSION.*1 in the store, 2 here'
    ):
        cache(root, whole)


def test_two_commands_do_not_write_one_store(root, tmp_path):
    lock = shards.hold(tmp_path, 'it')
    try:
        with pytest.raises(TargetStoreError, match='being written by another process'):
            cache(root, tmp_path)
    finally:
        os.close(lock)


def test_a_disk_that_is_full_at_the_end_leaves_a_store_that_goes_on(
    root, whole, tmp_path, monkeypatch
):
    real, calls = StoreMeta.write, []

    def full(self, folder):
        calls.append(self)
        if self.complete:
            raise OSError(28, 'No space left on device')
        real(self, folder)

    monkeypatch.setattr(StoreMeta, 'write', full)
    with pytest.raises(TargetStoreError, match='No space left.*same command again'):
        cache(root, tmp_path)
    monkeypatch.setattr(StoreMeta, 'write', real)
    assert cache(root, tmp_path).shards == {'shard_000.lmdb': 12}
    assert contents(tmp_path) == contents(whole)


def test_the_teacher_inside_of_a_cached_one_is_run(root, whole, tmp_path):
    cached = dict(type='CachedTeacher', store=str(tmp_path / 'store'), teacher=TEACHER)
    cfg = config(root, cached)
    assert default_folder(cfg, 'train') == str(tmp_path / 'store')
    assert default_folder(cfg, 'val') == 'work_dirs/tiny/targets_val'
    cache(root, tmp_path, cached)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(texts='most'), '--texts most'),
        (dict(split='test'), '--split test: choose from'),
        (dict(dtype='int4'), '--dtype int4'),
        (dict(processes=0), '--processes 0'),
        (dict(max_images=0), '--max-images 0'),
        (dict(workers=-1), '--workers -1'),
        pytest.param(
            dict(device='cuda'),
            'no CUDA device',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='has CUDA'),
        ),
    ],
)
def test_options_that_cannot_be_are_refused(root, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        cache(root, tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_a_config_without_a_teacher_is_refused(root, tmp_path):
    with pytest.raises(InputError, match='model.teacher is None; nothing to cache'):
        cache(root, tmp_path / 'out', None)


def test_missing_images_are_found_before_anything_is_computed(tmp_path):
    write_tiny_coco(tmp_path, num_images=3)
    (tmp_path / 'train' / '1.png').unlink()
    with pytest.raises(InputError, match='1 of 3 images .* are missing'):
        cache(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_two_datasets_with_the_same_ids_are_refused(root, tmp_path):
    extra = (
        'train_dataloader["dataset"] = dict(type="ConcatDataset", datasets='
        '[train_dataloader["dataset"], train_dataloader["dataset"]])'
    )
    with pytest.raises(InputError, match='two images have the id 1;'):
        cache(root, tmp_path / 'out', extra=extra)


def test_captions_reach_the_teacher_and_are_checked_before(root, tmp_path):
    path = tmp_path / 'captions.json'
    extra = (
        f'train_pipeline.insert(2, dict(type="LoadCaptions", ann_file={str(path)!r}))\n'
    )
    entries = [dict(image_id=i, caption=f'red {i}') for i in range(1, 13)]
    path.write_text(json.dumps(dict(annotations=entries)))
    cpu = torch.device('cpu')
    source = caching.Source.build(config(root, extra=extra), 'train', cpu)
    assert source.dataset[2]['data_samples'].captions == ['red 3']
    path.write_text(json.dumps(dict(annotations=entries[:5])))
    with pytest.raises(InputError, match='LoadCaptions|captions'):
        cache(root, tmp_path / 'out', extra=extra)
    assert not (tmp_path / 'out').exists()


# -- several processes -----------------------------------------------------------------
MODULE = """
import os, signal
from pathlib import Path
from mmdet.registry import MODELS
from lfi_mmdet.models.teachers import GroundTruthTeacher

@MODELS.register_module(force=True)
class MortalTeacher(GroundTruthTeacher):
    def targets(self, batch_inputs, data_samples, present, preprocessor):
        # the first to come to the last image does not survive it
        if data_samples[-1].img_id == 12 and not Path({flag!r}).exists():
            Path({flag!r}).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().targets(batch_inputs, data_samples, present, preprocessor)
"""


@pytest.mark.slow
def test_two_processes_one_of_which_dies_and_then_two_others(
    root, tmp_path, monkeypatch
):
    truth = dict(type='GroundTruthTeacher', grid_size=8)
    cache(root, tmp_path / 'one', truth)
    (tmp_path / 'mortal.py').write_text(MODULE.format(flag=str(tmp_path / 'died')))
    monkeypatch.syspath_prepend(tmp_path)
    extra = "custom_imports = dict(imports=['lfi_mmdet', 'mortal'])"
    run = functools.partial(
        cache, root, tmp_path / 'two', dict(truth, type='MortalTeacher'), extra
    )
    with pytest.raises(InputError) as caught:
        run(processes=2)
    assert re.match(
        r'process 1 of 2 died \(SIGKILL; out of memory\?\)\. \d+ of 12 images are '
        'stored; run the same command again',
        str(caught.value),
    )
    stored = len(TargetStoreReader(tmp_path / 'two', allow_incomplete=True))
    assert stored < 12
    meta = run(processes=2)
    assert meta.complete and sum(meta.shards.values()) == 12
    assert contents(tmp_path / 'two') == contents(tmp_path / 'one')
