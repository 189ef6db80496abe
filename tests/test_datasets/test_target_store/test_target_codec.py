"""Targets as bytes: what is exact, how large the error is, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from lfi_mmdet.datasets.target_store import (
    DTYPES,
    StoredTargets,
    TargetStoreError,
    decode,
    encode,
    error_bound,
    total_variation,
)
from tests.stored_targets import attention_maps, make_record


def tv_of(maps: np.ndarray, dtype: str) -> np.ndarray:
    count = maps.shape[1]
    record = StoredTargets(maps, np.arange(count), np.ones(count, bool))
    return total_variation(maps, decode(encode(record, dtype)).maps)


def realistic_maps() -> dict[str, np.ndarray]:
    """Families of maps, each (1, 200, 16, 16)."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((200, 16, 16))
    smooth = np.stack([gaussian_filter(image, 1.0) for image in noise])
    smooth /= smooth.std((1, 2), keepdims=True)

    def softmax(logits):
        weights = np.exp(logits - logits.max((-2, -1), keepdims=True))
        return weights / weights.sum((-2, -1), keepdims=True)

    heads = softmax(smooth * np.linspace(0.5, 4, 12)[:, None, None, None]).mean(0)
    sinks = heads.copy()
    sinks[:, 3, 5] += random.pareto(1.5, 200) * 0.2
    families = {
        # cosines within an image differ by 0.04 or so
        **{f'temperature {t}': softmax(smooth * 0.04 / t) for t in (0.07, 0.03, 0.01)},
        'one patch takes nearly all': softmax(smooth * 8),
        'mean over heads': heads,
        'with sinks': sinks / sinks.sum((1, 2), keepdims=True),
        'uniform': np.full((200, 16, 16), 1 / 256),
    }
    return {name: maps[None].astype(np.float32) for name, maps in families.items()}


@pytest.mark.parametrize('dtype, limit', [('uint8', 0.006), ('float16', 0.0002)])
def test_realistic_maps_keep_all_but_a_stated_share_of_their_attention(dtype, limit):
    for name, maps in realistic_maps().items():
        errors = tv_of(maps, dtype)
        assert errors.max() < limit, name
        assert errors.mean() < 0.7 * limit, name


@settings(max_examples=100, deadline=None)
@given(
    sharpness=st.floats(0, 40),
    side=st.integers(1, 24),
    peaks=st.integers(0, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_no_map_exceeds_the_error_bound(sharpness, side, peaks, dtype, seed):
    maps = attention_maps(1, 3, side, side, sharpness=sharpness, seed=seed)
    maps[:, :, 0, :peaks] += 1
    maps /= maps.sum((-2, -1), keepdims=True)
    bound = max(error_bound(dtype, side * side, float(m.max())) for m in maps[0])
    assert tv_of(maps, dtype).max() <= bound + 1e-6


@pytest.mark.parametrize('dtype', DTYPES)
def test_logarithms_of_decoded_maps_are_finite_and_rows_sum_to_one(dtype):
    maps = np.zeros((1, 2, 3, 3), np.float32)
    maps[0, 0, 1, 1] = 1
    maps[0, 1] = 1 / 9
    record = StoredTargets(maps, np.array([1, 0]), np.ones(2, bool))
    decoded = decode(encode(record, dtype)).maps
    np.testing.assert_allclose(decoded.sum((-2, -1)), 1, atol=1e-6)
    if dtype == 'uint8':
        assert np.isfinite(np.log(decoded)).all()
    np.testing.assert_array_equal(decoded[0, 1], maps[0, 1])


@pytest.mark.parametrize('dtype', DTYPES)
def test_everything_but_the_maps_comes_back(dtype):
    features = np.random.default_rng(0).standard_normal((2, 2, 7)).astype(np.float32)
    record = make_record(features=features, words=('Straße', 'x'), texts=(79, 80))
    found = decode(encode(record, dtype))
    assert found.words == ('Straße', 'x')
    assert found.texts.tolist() == [79, 80] and found.texts.dtype == np.int64
    np.testing.assert_array_equal(found.present, record.present)
    np.testing.assert_allclose(found.relations, record.relations, atol=5e-4)
    np.testing.assert_array_equal(found.relations, found.relations.swapaxes(1, 2))
    np.testing.assert_allclose(found.features, features, rtol=5e-4, atol=1e-6)
    assert found.maps.dtype == found.features.dtype == found.relations.dtype
    assert found.maps.dtype == np.float32
    bare = decode(encode(make_record(relations=None), dtype))
    assert bare.relations is bare.features is bare.words is None


def test_an_image_without_texts_has_a_record_too():
    record = make_record(texts=(), words=())
    found = decode(encode(record, 'uint8'))
    assert found.maps.shape == (2, 0, 4, 6)
    assert found.relations.shape == (2, 0, 0)
    assert found == record


def test_what_was_decoded_is_coded_to_the_same_bytes_again():
    data = encode(make_record(), 'uint8')
    assert encode(decode(data), 'uint8') == data


@pytest.mark.parametrize(
    'where', [0, 5, 8, 20, -1], ids=['magic', 'checksum', 'version', 'shape', 'body']
)
def test_damaged_bytes_are_refused(where):
    data = bytearray(encode(make_record(), 'uint8'))
    data[where] ^= 1
    with pytest.raises(TargetStoreError, match='damaged|no stored targets|format'):
        decode(bytes(data))


@pytest.mark.parametrize('length', [0, 3, 20, 100])
def test_bytes_that_are_cut_off_are_refused(length):
    data = encode(make_record(), 'uint8')
    assert len(data) > length
    with pytest.raises(TargetStoreError, match=f'^{length} bytes'):
        decode(data[:length])


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(maps=np.full((2, 2, 4, 6), 0.1, np.float32)), 'no distribution'),
        (dict(maps=np.full((2, 2, 4, 6), np.nan, np.float32)), 'not finite'),
        (dict(maps=np.zeros((2, 4, 6), np.float32)), 'are not'),
        (dict(texts=np.array([1, 1])), r'\[1, 1\]'),
        (dict(texts=np.array([-1, 1])), 'no distinct ids'),
        (dict(present=np.ones(3, bool)), r'present of shape \(3,\)'),
        (dict(relations=np.triu(np.ones((2, 2, 2), np.float32))), 'not symmetric'),
        (dict(features=np.full((2, 2, 1), 1e6, np.float32)), 'too large for float16'),
    ],
)
def test_targets_that_are_not_in_order_are_not_stored(change, message):
    with pytest.raises(ValueError, match=message):
        encode(make_record(**change), 'uint8')


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"dtype='int4'.*uint8.*float16"):
        encode(make_record(), 'int4')
