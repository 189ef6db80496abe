"""Writing and reading a store, and what happens to it when something goes wrong."""

import dataclasses
import multiprocessing
import os
import pickle
import resource
import signal
import time

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from lfi_mmdet.datasets.target_store import (
    MissingTargetsError,
    StoreMeta,
    TargetStoreError,
    TargetStoreReader,
    TargetStoreWriter,
    decode,
    encode,
    shards,
)
from tests.stored_targets import attention_maps, make_meta, make_record

FORK = multiprocessing.get_context('fork')


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Do not wait for a process that will not end."""
    monkeypatch.setattr(shards.hold, '__defaults__', (0.5,))


def as_stored(record):
    """What comes back of a record."""
    return decode(encode(record, 'uint8'))


def fill(folder, ids, rank=0, **kwargs):
    with TargetStoreWriter(folder, make_meta(), rank, **kwargs) as writer:
        for i in ids:
            writer.put(i, make_record(i))


def finish(folder):
    """Mark a store as complete."""
    with TargetStoreReader(folder, allow_incomplete=True) as reader:
        meta = dataclasses.replace(
            reader.meta,
            complete=True,
            num_images=len(reader),
            shards=reader.shard_sizes(),
        )
    meta.write(folder)


@pytest.fixture
def store(tmp_path):
    """A complete store of ten images in two shards."""
    fill(tmp_path, range(6))
    fill(tmp_path, range(6, 10), rank=1)
    finish(tmp_path)
    return tmp_path


def test_images_of_all_shards_are_found(store):
    reader = TargetStoreReader(store)
    assert len(reader) == 10 and sorted(reader.keys()) == list(range(10))
    for i in range(10):
        assert i in reader
        assert reader.get(i) == as_stored(make_record(i))
    assert reader.get(np.int64(3)) == reader.get(3)
    assert 10 not in reader


def test_an_absent_image_is_named_with_the_store(store):
    with pytest.raises(MissingTargetsError) as caught:
        TargetStoreReader(store).get(99)
    assert isinstance(caught.value, KeyError)
    assert str(caught.value).startswith(f'{store} has no targets of image 99')


def test_numbers_and_texts_are_different_ids(tmp_path):
    with TargetStoreWriter(tmp_path, make_meta()) as writer:
        writer.put(1, make_record(1))
        writer.put('1', make_record(2))
        with pytest.raises(TargetStoreError, match='img_id=1.5 is a float'):
            writer.put(1.5, make_record())
        with pytest.raises(TargetStoreError, match='600 bytes|602 bytes'):
            writer.put('x' * 600, make_record())
    reader = TargetStoreReader(tmp_path, allow_incomplete=True)
    assert set(reader.keys()) == {1, '1'}
    assert reader.get('1') == as_stored(make_record(2))


def test_a_record_that_is_not_in_order_is_refused_with_its_image(tmp_path):
    with TargetStoreWriter(tmp_path, make_meta()) as writer:
        with pytest.raises(TargetStoreError, match="image 'a.jpg'.*no distinct"):
            writer.put('a.jpg', make_record(texts=(1, 1)))


def test_the_map_of_a_shard_grows_as_needed(tmp_path):
    fill(tmp_path, range(200), map_size=2**15)
    reader = TargetStoreReader(tmp_path, allow_incomplete=True)
    assert reader.num_bytes > 2**16
    assert all(reader.get(i) == as_stored(make_record(i)) for i in range(200))


def test_the_writers_statistics_are_those_of_its_images(store):
    stats = TargetStoreReader(store).stats()
    assert [one['images'] for one in stats] == [6, 4]
    errors = [
        np.abs(make_record(i).maps - as_stored(make_record(i)).maps).sum((-2, -1)) / 2
        for i in range(6)
    ]
    assert stats[0]['maps'] == 24
    assert stats[0]['tv_max'] == pytest.approx(np.max(errors), rel=1e-5)
    assert stats[0]['tv_sum'] == pytest.approx(np.sum(errors), rel=1e-5)


# -- several readers -------------------------------------------------------------------
class Images(Dataset):
    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return 10

    def __getitem__(self, index):
        record = self.reader.get(index)
        # LMDB forbids the use of files that were opened before a fork
        assert os.getpid() in {shard._pid for shard in self.reader._opened()}
        assert record == as_stored(make_record(index))
        return record.maps.sum(), os.getpid()


def read_with_workers(reader, results):
    loader = DataLoader(Images(reader), num_workers=2, batch_size=2)
    batches = list(loader)
    results.put((len(batches), len({int(pid) for _, pids in batches for pid in pids})))


def test_two_processes_with_two_workers_each_read_what_the_parent_has_open(store):
    reader = TargetStoreReader(store)
    expected = reader.get(0)  # opened in the parent
    results = FORK.SimpleQueue()
    processes = [
        FORK.Process(target=read_with_workers, args=(reader, results)) for _ in '12'
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [results.get(), results.get()] == [(5, 2), (5, 2)]
    assert reader.get(0) == expected  # children that close leave the parent alone


def test_a_reader_is_sent_to_others_without_its_files(store):
    reader = TargetStoreReader(store)
    data = pickle.dumps(reader)
    assert len(data) < 10_000
    assert pickle.loads(data).get(7) == reader.get(7)
    del reader
    assert pickle.loads(data).get(7) == as_stored(make_record(7))


def test_several_readers_of_one_process_share_the_files(store):
    first, second = TargetStoreReader(store), TargetStoreReader(store)
    first.close()
    assert second.get(1) == first.get(1)


def test_two_processes_write_at_the_same_time(tmp_path):
    processes = [
        FORK.Process(target=fill, args=(tmp_path, range(rank, 60, 2), rank))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    reader = TargetStoreReader(tmp_path, allow_incomplete=True)
    assert reader.shard_sizes() == {'shard_000.lmdb': 30, 'shard_001.lmdb': 30}
    assert all(reader.get(i) == as_stored(make_record(i)) for i in range(60))


# -- what goes wrong -------------------------------------------------------------------
def write_until_killed(folder, progress):
    writer = TargetStoreWriter(folder, make_meta(), commit_every=8)
    for i in range(1000):
        writer.put(i, make_record(i))
        progress.value = i
        time.sleep(0.002)


def test_kill_9_loses_a_transaction_at_most_and_the_rest_is_added(tmp_path):
    progress = FORK.Value('i', -1)
    process = FORK.Process(target=write_until_killed, args=(tmp_path, progress))
    process.start()
    while progress.value < 37:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    reader = TargetStoreReader(tmp_path, allow_incomplete=True)
    count = len(reader)
    assert count % 8 == 0 and progress.value - 8 <= count <= progress.value + 2
    assert all(reader.get(i) == as_stored(make_record(i)) for i in range(count))

    fill(tmp_path, range(count, 60))
    reader = TargetStoreReader(tmp_path, allow_incomplete=True)
    assert list(reader.shard_sizes().values()) == [count, 60 - count]
    assert all(reader.get(i) == as_stored(make_record(i)) for i in range(60))


def test_an_incomplete_store_is_refused_unless_allowed(tmp_path):
    fill(tmp_path, range(8))
    message = '8 of 10 images; run tools/cache_teacher.py again to finish it'
    with pytest.raises(TargetStoreError, match=message):
        TargetStoreReader(tmp_path)
    assert len(TargetStoreReader(tmp_path, allow_incomplete=True)) == 8


def test_a_store_that_was_only_begun_has_no_images(tmp_path):
    writer = TargetStoreWriter(tmp_path, make_meta())
    assert len(TargetStoreReader(tmp_path, allow_incomplete=True)) == 0
    # killed before LMDB has written its first page
    (tmp_path / 'shard_000.lmdb').touch()
    assert len(TargetStoreReader(tmp_path, allow_incomplete=True)) == 0
    writer.put(1, make_record())
    writer.close()
    assert TargetStoreReader(tmp_path, allow_incomplete=True).shard_sizes() == {
        'shard_001.lmdb': 1
    }


def test_a_shard_is_not_read_while_it_is_written(tmp_path):
    with TargetStoreWriter(tmp_path, make_meta(), commit_every=1) as writer:
        writer.put(1, make_record())
        with pytest.raises(TargetStoreError, match='shard_000.*being written'):
            TargetStoreReader(tmp_path, allow_incomplete=True)
    assert len(TargetStoreReader(tmp_path, allow_incomplete=True)) == 1


@pytest.mark.parametrize('complete', [True, False])
@pytest.mark.parametrize('length', [0, 100, 8192, -4096])
def test_a_truncated_shard_is_refused(store, length, complete):
    meta = dataclasses.replace(StoreMeta.read(store), complete=complete)
    meta.write(store)
    path = store / 'shard_001.lmdb'
    size = path.stat().st_size
    os.truncate(path, length if length >= 0 else size + length)
    if length == 0 and not complete:  # as one that a kill has left behind
        assert len(TargetStoreReader(store, allow_incomplete=True)) == 6
        return
    with pytest.raises(TargetStoreError, match='shard_001.lmdb is cut off'):
        TargetStoreReader(store, allow_incomplete=True)


def test_a_missing_shard_is_refused(store):
    (store / 'shard_000.lmdb').unlink()
    with pytest.raises(TargetStoreError, match='shard_000.lmdb is missing'):
        TargetStoreReader(store)


def test_a_shard_of_another_store_is_refused(store, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    fill(other, range(3))
    os.replace(other / 'shard_000.lmdb', store / 'shard_001.lmdb')
    with pytest.raises(TargetStoreError, match='has 3 images, but store.json says 4'):
        TargetStoreReader(store)


def test_damaged_targets_are_refused_with_image_and_shard(store):
    path = store / 'shard_001.lmdb'
    content = bytearray(path.read_bytes())
    start = bytes(content).index(encode(make_record(8), 'uint8'))
    content[start + 60] ^= 255
    path.write_bytes(content)
    reader = TargetStoreReader(store)
    assert reader.get(7) == as_stored(make_record(7))
    with pytest.raises(TargetStoreError, match=r'image 8 in .*shard_001.*checksum'):
        reader.get(8)


def test_shards_without_a_meta_file_are_not_continued(store):
    (store / 'store.json').unlink()
    with pytest.raises(TargetStoreError, match='2 shards, but no store.json'):
        TargetStoreWriter(store, make_meta())


def large_record(seed):
    maps = attention_maps(2, 2, 64, 64, seed=seed)
    return make_record(seed, maps=maps)


def write_on_a_small_disk(folder, result):
    # a write beyond the limit fails as it does on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    writer = TargetStoreWriter(folder, make_meta(), commit_every=4)
    try:
        with writer:
            for i in range(40):
                writer.put(i, large_record(i))
    except TargetStoreError as error:
        result.put((str(error), writer.committed))


def test_a_full_disk_ends_in_one_message_and_the_store_goes_on(tmp_path):
    result = FORK.SimpleQueue()
    process = FORK.Process(target=write_on_a_small_disk, args=(tmp_path, result))
    process.start()
    process.join(60)
    message, count = result.get()
    assert process.exitcode == 0
    assert 'The disk may be full' in message and 'run the same command again' in message
    assert 0 < count < 40
    reader = TargetStoreReader(tmp_path, allow_incomplete=True)
    assert sorted(reader.keys()) == list(range(count))

    with TargetStoreWriter(tmp_path, make_meta()) as writer:
        for i in range(count, 40):
            writer.put(i, large_record(i))
    reader = TargetStoreReader(tmp_path, allow_incomplete=True)
    assert all(reader.get(i) == as_stored(large_record(i)) for i in range(40))


def test_a_disk_that_cannot_be_written_to_at_the_start_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(TargetStoreError, match='file/store cannot be made'):
        TargetStoreWriter(tmp_path / 'file' / 'store', make_meta())
