"""Scenes, masks and captions of the generated data."""

import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_api

from lfi_mmdet.datasets import shapes
from lfi_mmdet.datasets.shapes import (
    SHAPE_CLASSES,
    STYLES,
    SceneConfig,
    captions,
    render,
    sample_scene,
)
from lfi_mmdet.datasets.shapes.captions import plural
from lfi_mmdet.datasets.shapes.classes import outline, polygon_area
from lfi_mmdet.datasets.shapes.coco import encode_mask, trace
from lfi_mmdet.datasets.shapes.scene import rasterise, typical_colour
from lfi_mmdet.datasets.shapes.textures import COLOURS, TEXTURES

SMALL = SceneConfig(size=64)
NUMBERS = 'zero one two three four five six seven eight nine'.split()


@pytest.fixture(scope='module')
def scenes():
    return [sample_scene(0, 'train', i, SceneConfig(classes=16)) for i in range(100)]


def counted_classes(caption):
    """How many objects of each class a caption tells of."""
    nouns = {name: name for name in SHAPE_CLASSES}
    nouns |= {plural(name): name for name in SHAPE_CLASSES}
    told, number = {}, 0
    for word in re.findall('[a-z]+', caption.lower()):
        if word in ('a', 'an'):
            number = 1
        elif word in NUMBERS:
            number = NUMBERS.index(word)
        elif word in nouns:
            assert number > 0, caption
            assert (number > 1) == (word != nouns[word]), caption
            told[nouns[word]] = told.get(nouns[word], 0) + number
            number = 0
    return told


@pytest.mark.parametrize('name', SHAPE_CLASSES)
@pytest.mark.parametrize('variant', [0.0, 0.5, 1.0])
def test_outlines_are_centred_and_cover_their_area(name, variant):
    points = outline(name, variant)
    low, high = points.min(axis=0), points.max(axis=0)
    assert np.allclose(low + high, 0)
    assert np.isclose((high - low).max(), 1)
    (rows, columns), alpha = rasterise(points * 60 + 50, 100)
    assert alpha.sum() == pytest.approx(polygon_area(points * 60), rel=0.03)
    y, x = np.mgrid[rows, columns] + 0.5
    if name in ('circle', 'square', 'ellipse', 'rectangle', 'hexagon', 'cross'):
        # Symmetric: pixel centres may not shift a shape, nor rounding by much
        assert (alpha * x).sum() / alpha.sum() == pytest.approx(50, abs=0.15)
        assert (alpha * y).sum() / alpha.sum() == pytest.approx(50, abs=0.15)


def test_every_class_occurs_in_a_hundred_scenes(scenes):
    seen = {scene.items[i].category for scene in scenes for i in scene.objects}
    assert seen == set(SHAPE_CLASSES)


def test_scenes_are_varied(scenes):
    items = [scene.items[i] for scene in scenes for i in scene.objects]
    assert {len(scene.objects) for scene in scenes} == set(range(1, 7))
    assert {item.colour for item in items} == set(COLOURS)
    assert {item.texture for item in items} == set(TEXTURES)
    assert {item.faint for item in items} == {True, False}
    extents = [item.extent for item in items]
    assert 0.12 <= min(extents) < 0.14 and 0.45 < max(extents) <= 0.55
    assert any(i.category is None for scene in scenes for i in scene.items)


def test_no_object_is_too_hidden_to_be_labelled(scenes):
    for scene in scenes:
        for index in scene.objects:
            assert scene.visible_share(index) >= 0.25
            assert scene.visible_mask(index).sum() >= 12


def test_objects_hide_parts_of_each_other(scenes):
    def hidden_inside_the_image(scene, index):
        points = scene.items[index].points
        inside = points.min() >= 0 and points.max() <= scene.config.size
        return inside and scene.visible_share(index) < 0.8

    count = sum(hidden_inside_the_image(s, i) for s in scenes for i in s.objects)
    assert count >= 20


def test_unhidden_objects_are_seen_over_their_full_area(scenes):
    seen = []
    for scene in scenes:
        # The last item lies on top
        item = scene.items[-1]
        inside = item.points.min() >= 0 and item.points.max() <= scene.config.size
        if item.category is not None and inside:
            seen.append((scene.visible_mask(len(scene.items) - 1).sum(), item.area))
    assert len(seen) >= 20
    pixels, areas = np.sum(seen, axis=0)
    assert pixels == pytest.approx(areas, rel=0.05)


def test_painted_pixels_are_those_of_the_masks():
    for index in range(10):
        scene = sample_scene(0, 'train', index, SceneConfig(domain='flat'))
        image = render(scene).astype(int)
        for item in scene.objects:
            mask = np.pad(scene.visible_mask(item), 2)
            # Away from edges and rims
            inner = np.all(
                [
                    np.roll(mask, (dy, dx), (0, 1))
                    for dy in range(-2, 3)
                    for dx in range(-2, 3)
                ],
                axis=0,
            )[2:-2, 2:-2]
            wanted = np.rint(scene.items[item].rgb * 255)
            assert np.abs(image[inner] - wanted).max(initial=0) <= 1


def test_domains_change_the_paint_and_not_the_scene():
    drawn = {}
    for domain in STYLES:
        scene = sample_scene(0, 'train', 1, SceneConfig(size=64, domain=domain))
        image = render(scene)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        drawn[image.tobytes()] = scene.owner.tobytes()
    assert len(drawn) == len(STYLES) == 5
    assert len(set(drawn.values())) == 1


def test_a_scene_without_room_is_refused():
    config = SceneConfig(size=48, min_visible_pixels=48 * 48)
    with pytest.raises(RuntimeError, match='min_visible_pixels'):
        sample_scene(0, 'train', 0, config)


def test_a_scene_is_reproducible_alone_and_in_any_split():
    def drawn(split, index):
        scene = sample_scene(5, split, index, SMALL)
        return render(scene).tobytes(), next(captions(scene))

    assert drawn('stream', 10**9) == drawn('stream', 10**9)
    assert len({drawn(s, i) for s in ('stream', 'train') for i in range(3)}) == 6


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(size=20), 'size is 20; at least 48'),
        (dict(domain='oil'), "unknown domain 'oil'; choose from photo, flat"),
        (dict(classes=7), '7 shape classes .* choose 8 to 16'),
        (dict(classes=('circle', 'blob')), "'blob'; choose from circle"),
        (dict(classes=('circle',) * 9), "'circle' is listed more than once"),
        (dict(min_objects=4, max_objects=3), 'min_objects is 4'),
        (dict(max_size=1.5), 'max_size is 1.5'),
        (dict(min_visible_share=0.0), 'min_visible_share is 0.0'),
        (dict(captions=0), 'captions is 0'),
    ],
)
def test_bad_choices_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**wrong)


@settings(max_examples=100, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_an_encoded_mask_decodes_to_itself(mask):
    if not mask.any():
        return
    h, w = mask.shape
    found = encode_mask(mask)
    rle = found['segmentation']
    if isinstance(rle, list):
        rle = mask_api.merge(mask_api.frPyObjects(rle, h, w))
    assert np.array_equal(mask_api.decode(rle).astype(bool), mask)
    assert found['area'] == mask.sum()


def test_only_a_single_piece_without_holes_becomes_a_polygon():
    block = np.zeros((7, 7), bool)
    block[1:6, 1:6] = True
    assert trace(block) == [1, 1, 6, 1, 6, 6, 1, 6]
    holed, apart, touching = block.copy(), block.copy(), block.copy()
    holed[3, 3] = False
    apart[:, 3] = False
    touching[1:4, 1:4] = touching[4:, 4:] = False
    assert trace(holed) is None
    assert trace(apart) is None
    assert trace(touching) is None


@pytest.mark.parametrize('domain', STYLES)
def test_captions_count_exactly_the_visible_objects(domain):
    config = SceneConfig(size=64, classes=16, domain=domain)
    for index in range(25):
        scene = sample_scene(1, 'train', index, config)
        there = [scene.items[i].category for i in scene.objects]
        for caption in islice(captions(scene), 5):
            told = counted_classes(caption)
            assert told == {name: there.count(name) for name in there}, caption


def test_captions_name_only_what_can_be_seen(scenes):
    for scene in scenes:
        items = [scene.items[i] for i in scene.objects]
        clear = [item for item in items if not item.faint]
        words = set(re.findall('[a-z]+', ' '.join(islice(captions(scene), 5)).lower()))
        assert words & set(COLOURS) <= {item.colour for item in clear}
        assert words & set(TEXTURES) <= {item.texture for item in clear}
        assert 'faint' not in words or len(clear) < len(items)
        assert 'small' not in words or min(i.extent for i in items) <= 0.15
        assert 'large' not in words or max(i.extent for i in items) >= 0.35


@pytest.mark.parametrize(
    ('domain', 'silent'),
    [('line', {*COLOURS, *TEXTURES}), ('inverted', {*COLOURS}), ('flat', {*TEXTURES})],
)
def test_captions_leave_out_what_the_domain_does_not_show(domain, silent):
    config = SceneConfig(size=64, domain=domain)
    for index in range(20):
        text = ' '.join(islice(captions(sample_scene(0, 'val', index, config)), 5))
        assert not set(re.findall('[a-z]+', text.lower())) & silent


def test_positions_in_captions_are_true(scenes):
    found = set()
    pattern = re.compile(r'(\w+) (left of|right of|above|below) an? ([\w ]+?)[,.]')
    for scene in scenes:
        centres = {}
        for index in scene.objects:
            rows, columns = np.nonzero(scene.visible_mask(index))
            name = scene.items[index].category
            centres.setdefault(name, []).append((columns.mean(), rows.mean()))
        for caption in islice(captions(scene), 6):
            match = pattern.search(caption)
            if match is None:
                continue
            first, relation, second = match.groups()
            found.add(relation)
            ways = {
                'left of': lambda a, b: a[0] < b[0],
                'right of': lambda a, b: a[0] > b[0],
                'above': lambda a, b: a[1] < b[1],
                'below': lambda a, b: a[1] > b[1],
            }
            assert any(
                ways[relation](a, b)
                for a in centres[first]
                for b in centres[second.split()[-1]]
            ), caption
    assert found == {'left of', 'right of', 'above', 'below'}


def test_the_generator_needs_neither_torch_nor_mmdet():
    # Its parent packages import both; stand-ins show what it needs itself
    folder = Path(shapes.__file__).parent
    script = (
        'import sys, types\n'
        f'for name, path in (("lfi_mmdet", {str(folder.parents[1])!r}), '
        f'("lfi_mmdet.datasets", {str(folder.parent)!r})):\n'
        '    sys.modules[name] = types.ModuleType(name)\n'
        '    sys.modules[name].__path__ = [path]\n'
        'import lfi_mmdet.datasets.shapes\n'
        'print({"torch", "mmengine", "mmcv", "mmdet"} & set(sys.modules))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True
    )
    assert done.stdout.strip() == 'set()', done.stderr


def test_clutter_adds_what_belongs_to_no_class_and_faint_objects():
    def count(clutter):
        config = SceneConfig(clutter=clutter)
        scenes = [sample_scene(0, 'train', i, config) for i in range(40)]
        items = [item for scene in scenes for item in scene.items]
        strange = sum(item.category is None for item in items)
        faint = sum(item.faint for item in items if item.category is not None)
        return strange, faint

    assert count(0.0) == (0, 0)
    some, many = count(0.4), count(1.0)
    assert 0 < some[0] < many[0] and 0 < some[1] < many[1]


def test_typical_colours_tie_most_objects_to_the_colour_of_their_class():
    def share(typical_colours):
        config = SceneConfig(clutter=0.0, typical_colours=typical_colours)
        scenes = [sample_scene(0, 'train', i, config) for i in range(40)]
        hits = [
            scene.items[i].colour
            == typical_colour(scene.items[i].category, config.class_names)
            for scene in scenes
            for i in scene.objects
        ]
        return sum(hits) / len(hits)

    assert share(1.0) == 1.0
    assert 0.6 < share(0.8) < 0.95
    assert share(0.0) < 0.3  # one colour in twelve, and repeats


def test_an_impossible_share_of_typical_colours_is_named():
    with pytest.raises(ValueError, match='typical_colours is -1; choose 0 to 1'):
        SceneConfig(typical_colours=-1)


def test_an_impossible_clutter_is_named():
    with pytest.raises(ValueError, match='clutter is 1.5; choose 0 to 1'):
        SceneConfig(clutter=1.5)
