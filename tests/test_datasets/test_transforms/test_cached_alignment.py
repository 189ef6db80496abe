"""Cached targets and pixels stay together, however the image is augmented.

The twin of tests/test_models/test_teachers/test_alignment.py for online targets.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS

from lfi_mmdet.datasets.target_store import StoredTargets, StoreMeta, decode, encode
from lfi_mmdet.datasets.transforms import LoadCachedTargets, check_geometry
from lfi_mmdet.datasets.transforms.stored_presence import StoredPresence
from lfi_mmdet.models.teachers import CachedTeacher
from tests.alignment import (
    Augmentation,
    BrightnessTeacher,
    Scene,
    _shows_enough,
    augment,
    augmentations,
    drift,
    object_of,
    preprocess,
    preprocessings,
    scenes,
)

META = StoreMeta(teacher=dict(present='all'), classes=['object'], texts='present')
PADDING = [dict(type='Pad', size_divisor=64), dict(type='Pad', size=(400, 400))]
JITTERS = [  # crop, and pad what is smaller than the crop
    (
        dict(type='RandomCrop', crop_size=(width, height)),
        dict(type='Pad', size=(width, height)),
    )
    for width, height in [(96, 96), (160, 128)]
]


def stored(scene: Scene, teacher: BrightnessTeacher) -> StoredTargets:
    """What the teacher sees in the whole image, packed and unpacked."""
    batch = preprocess([augment(scene, Augmentation((), 0))])
    targets = teacher(*batch)
    record = StoredTargets(
        maps=targets.maps[0].numpy(),
        texts=np.zeros(1, np.int64),
        present=np.ones(1, bool),
    )
    return decode(encode(record, 'uint8'))


@st.composite
def paddings(draw, augmentation):
    """Nothing, padding, or a crop with padding; what is cut is not filled up."""
    if any(one['type'] == 'RandomCrop' for one in augmentation.transforms):
        return ()
    return draw(st.sampled_from([(), *((one,) for one in PADDING), *JITTERS]))


def cached(scene, augmentation, padding, record):
    """Send a scene through real transforms and load its targets."""
    load = LoadCachedTargets('nowhere')
    load._reader = SimpleNamespace(get=lambda img_id: record, meta=META)
    load._presence = StoredPresence(META)
    steps = [TRANSFORMS.build(one) for one in (*augmentation.transforms, *padding)]
    what = check_geometry(steps)
    pack = TRANSFORMS.build(dict(type='PackInteractionInputs'))
    pipeline = Compose([*steps, load, pack])
    for attempt in range(50):
        np.random.seed(augmentation.seed + attempt)
        packed = pipeline(scene.results())
        if packed is not None and _shows_enough(packed['data_samples']):
            return packed, {load.token: what}
    return None, None


def patch_in_pixels(sample, record):
    """Height and width of a patch of the teacher, in pixels of the final image."""
    scale = np.array(sample.get('scale_factor', (1.0, 1.0)))[::-1]
    return np.array(sample.ori_shape) / record.maps.shape[-2:] * scale


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    scene=scenes(),
    augmented=augmentations().flatmap(lambda a: st.tuples(st.just(a), paddings(a))),
    preprocessing=preprocessings(),
    grid=st.sampled_from([(32, 48), (64, 64), (96, 80)]),
)
def test_map_and_object_stay_together(scene, augmented, preprocessing, grid):
    record = stored(scene, BrightnessTeacher(size=grid))
    packed, checked = cached(scene, *augmented, record)
    if packed is None:
        return
    inputs, samples, preprocessor = preprocess([packed], **preprocessing)
    teacher = CachedTeacher.__new__(CachedTeacher)
    teacher._checked = checked
    maps = teacher(inputs, samples, preprocessor).maps[0, 0, 0]
    torch.testing.assert_close(maps.sum(), torch.tensor(1.0))
    sample, mask = samples[0], object_of(samples[0])
    patch = patch_in_pixels(sample, record)
    cells = np.array(sample.img_shape) / maps.shape
    found = drift(maps, mask, sample.img_shape, tuple(np.maximum(patch, cells)))
    # a patch is promised; half a patch would be a wrong offset
    assert found.centre <= 0.5 and found.peak <= 1, found
    # cells are larger than patches in an image that was padded, and read at a centre
    wide = drift(maps, mask, sample.img_shape, tuple(patch + cells / 2))
    assert wide.outside < 0.05, wide
