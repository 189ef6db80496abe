"""Targets of one image as bytes, and back.

Maps become one byte (``'uint8'``) or two (``'float16'``) per cell. A byte holds the
cube root of the cell relative to the largest of its map: ``round(255 cbrt(p / max))``.
Decoded maps are divided by their sums, so that no scale has to be kept.

The error of a map is its total variation (TV), half the sum of the absolute
differences, which is the share of attention that has moved. Whatever the map, with N
cells and its greatest value ``max``, it is at most (:func:`error_bound`)::

    uint8:    (1 + cbrt(N max) / 510)^3 - 1     2.2% for N = 256 and max = 0.2
    float16:  2^-11 + N max 2^-25               0.05%

Those are the worst cases, with the rounding of all cells against us. Measured on ten
families of 600 maps of 16x16 (softmax of smooth cosines at temperatures 0.07, 0.03 and
0.01, nearly one-hot, the mean over 12 heads of attention with and without sinks,
log-normal and Student-t tails, blurred masks, uniform), the largest of the families'
means and of all maps, and the bytes per cell after zlib for diffuse and for peaked
maps (attention; temperature 0.01):

    ============  ========  ========  ========  ========  =============
    bytes hold    mean TV   max TV    mean KL   max KL    bytes/cell
    ============  ========  ========  ========  ========  =============
    p             3.6e-2    1.4e-1    4.0e-1    2.7       0.69 - 0.19
    p^(1/2)       5.0e-3    7.7e-3    3.3e-4    6.4e-4    0.83 - 0.49
    p^(1/3)       3.7e-3    5.1e-3    6.3e-5    1.3e-4    0.85 - 0.67
    p^(1/4)       3.6e-3    4.7e-3    5.1e-5    8.0e-5    0.85 - 0.77
    log p         4.4e-3    7.1e-3    1.0e-3    1.6e-3    0.94 - 0.68
    float16       8.6e-5    1.1e-4    1.6e-6    1.9e-5    1.73 - 1.44
    ============  ========  ========  ========  ========  =============

KL is KL(map || decoded map) in nats. The root is what keeps the many small values that
the logarithms of the dynamics loss look at; from the third root on little is gained,
and more bytes are needed. Unpacking 12 layers of 5 texts takes 0.1 ms, of which zlib
needs 0.07. Differences between neighbours before it helped smooth maps and harmed
others.

Relations and features are float16 with a relative error of 2^-11. Relations are
symmetric, so one triangle of them is kept.
"""

from __future__ import annotations

import json
import struct
import zlib
from functools import lru_cache

import numpy as np

from .errors import TargetStoreError
from .record import StoredTargets

#: Names of the formats of maps
DTYPES = ('uint8', 'float16')
#: Raised when bytes are laid out in another way
CODEC_VERSION = 1

_MAGIC = b'LFIt'
#: magic, CRC-32 of all that follows, version, dtype, flags, unused; L, P, h, w; C, size
_HEADER = struct.Struct('<4sIBBBx4HII')
_CHECKED_FROM = 8
_RELATIONS, _FEATURES, _WORDS = 1, 2, 4
_STEPS = 255
#: Unpacks as fast as higher levels, which save no more than 3%
_ZLIB_LEVEL = 1


def error_bound(dtype: str, cells: int, largest: float) -> float:
    """Most that a stored map can differ from the map that was given.

    Args:
        dtype: One of :data:`DTYPES`.
        cells: Cells of the map.
        largest: Its greatest value.

    Returns:
        Total variation, from 0 to 1.
    """
    if dtype == 'float16':
        return 2**-11 + cells * largest * 2**-25
    return (1 + np.cbrt(cells * largest) / (2 * _STEPS)) ** 3 - 1


def total_variation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Half the summed absolute differences of maps (L, P, h, w), (L, P)."""
    return np.abs(maps - others).sum((-2, -1)) / 2


def encode(targets: StoredTargets, dtype: str) -> bytes:
    """Pack the targets of one image.

    Args:
        targets: They have to pass :meth:`StoredTargets.check`.
        dtype: One of :data:`DTYPES`.

    Raises:
        ValueError: If the format is unknown, the targets are not in order, or a size
            or a feature is too large for the format.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype={dtype!r} is not known; choose from {DTYPES}')
    targets.check()
    layers, rows, height, width = targets.maps.shape
    if max(targets.maps.shape) > 0xFFFF:
        raise ValueError(f'maps of shape {targets.maps.shape} are too large to store')
    parts = [
        targets.texts.astype('<i4').tobytes(),
        np.packbits(targets.present).tobytes(),
        _pack_maps(targets.maps, dtype),
    ]
    flags = channels = 0
    if targets.relations is not None:
        flags |= _RELATIONS
        i, j = _triangle(rows)
        parts.append(_half(targets.relations[:, i, j], 'relations'))
    if targets.features is not None:
        flags |= _FEATURES
        channels = targets.features.shape[-1]
        parts.append(_half(targets.features, 'features'))
    if targets.words is not None:
        flags |= _WORDS
        parts.append(json.dumps(targets.words, ensure_ascii=False).encode())
    body = b''.join(parts)
    header = _HEADER.pack(
        *(_MAGIC, 0, CODEC_VERSION, DTYPES.index(dtype), flags),
        *(layers, rows, height, width, channels, len(body)),
    )
    checked = header[_CHECKED_FROM:] + zlib.compress(body, _ZLIB_LEVEL)
    return _MAGIC + struct.pack('<I', zlib.crc32(checked)) + checked


def decode(data: bytes) -> StoredTargets:
    """Unpack what :func:`encode` has packed.

    Returns:
        The targets; their maps sum to 1.

    Raises:
        TargetStoreError: If the bytes are damaged, cut off, of something else or of
            another version.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise TargetStoreError(
            f'{len(data)} bytes that are no stored targets, or only their beginning'
        )
    (_, crc, version, kind, flags, *shape, channels, size) = _HEADER.unpack_from(data)
    if version != CODEC_VERSION:
        raise TargetStoreError(
            f'targets are in format {version}, this version of lfi_mmdet reads '
            f'{CODEC_VERSION}; cache them anew'
        )
    if zlib.crc32(memoryview(data)[_CHECKED_FROM:]) != crc:
        raise TargetStoreError(
            f'{len(data)} bytes of stored targets are damaged: their checksum is wrong'
        )
    body = zlib.decompress(memoryview(data)[_HEADER.size :], bufsize=size)
    layers, rows, height, width = shape
    reader = _Parts(body)
    texts = reader.take('<i4', rows).astype(np.int64)
    packed = reader.take(np.uint8, -(-rows // 8))
    present = np.unpackbits(packed, count=rows).astype(bool)
    maps = _unpack_maps(reader, DTYPES[kind], (layers, rows, height, width))
    relations = features = words = None
    if flags & _RELATIONS:
        half = reader.take_half(layers * (rows * (rows + 1) // 2))
        relations = _mirror(half.reshape(layers, -1), rows)
    if flags & _FEATURES:
        flat = reader.take_half(layers * rows * channels)
        features = flat.reshape(layers, rows, channels)
    if flags & _WORDS:
        words = tuple(json.loads(reader.rest()))
    return StoredTargets(maps, texts, present, relations, features, words)


class _Parts:
    """Cuts bytes into arrays, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._offset = data, 0

    def take(self, dtype: str | type, count: int) -> np.ndarray:
        array = np.frombuffer(self._data, dtype, count, self._offset)
        self._offset += array.nbytes
        return array

    def take_half(self, count: int) -> np.ndarray:
        """What :func:`_half` has packed, as float32."""
        planes = self.take(np.uint8, 2 * count).reshape(2, count)
        pairs = np.ascontiguousarray(planes[::-1].T)
        return pairs.view('<f2')[:, 0].astype(np.float32)

    def rest(self) -> bytes:
        return self._data[self._offset :]


@lru_cache
def _levels() -> np.ndarray:
    """What each of the 256 bytes stands for."""
    levels = (np.arange(_STEPS + 1) / _STEPS) ** 3
    # the mean of what is rounded to 0: logarithms of a decoded map stay finite
    levels[0] = (0.5 / _STEPS) ** 3 / 4
    return levels.astype(np.float32)


def _pack_maps(maps: np.ndarray, dtype: str) -> bytes:
    relative = maps / maps.max((-2, -1), keepdims=True, initial=np.finfo('f4').tiny)
    if dtype == 'uint8':
        return np.rint(_STEPS * np.cbrt(relative)).astype(np.uint8).tobytes()
    return _half(relative, 'maps')


def _unpack_maps(
    reader: _Parts, dtype: str, shape: tuple[int, int, int, int]
) -> np.ndarray:
    count = int(np.prod(shape))
    if dtype == 'uint8':
        flat = _levels().take(reader.take(np.uint8, count))
    else:
        flat = reader.take_half(count)
    maps = flat.reshape(-1, shape[2] * shape[3])
    maps /= maps.sum(1, keepdims=True)
    return maps.reshape(shape)


def _half(values: np.ndarray, name: str) -> bytes:
    with np.errstate(over='ignore'):
        half = values.astype('<f2')
    if not np.isfinite(half).all():
        raise ValueError(
            f'{name} up to {np.abs(values).max():.3g} are too large for float16'
        )
    # all upper bytes, then all lower ones: exponents are alike, fractions are not
    planes = half.reshape(-1, 1).view(np.uint8).T[::-1]
    return np.ascontiguousarray(planes).tobytes()


@lru_cache
def _triangle(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the upper triangle, with the diagonal."""
    return np.triu_indices(rows)


def _mirror(half: np.ndarray, rows: int) -> np.ndarray:
    """Make symmetric matrices (L, P, P) of their upper triangles (L, P (P + 1) / 2)."""
    whole = np.empty((len(half), rows, rows), np.float32)
    i, j = _triangle(rows)
    whole[:, i, j] = half
    whole[:, j, i] = half
    return whole
