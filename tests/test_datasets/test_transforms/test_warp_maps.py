"""Maps of the original image, on what augmentation left of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion, map_coordinates

from lfi_mmdet.datasets.transforms.warp_maps import warp_maps

ORI = (480, 640)


def some_maps(*shape):
    maps = np.random.default_rng(0).random(shape).astype(np.float32)
    return maps / maps.sum((-2, -1), keepdims=True)


def scale(x, y, left=0.0, top=0.0):
    return np.array([[x, 0, left], [0, y, top], [0, 0, 1]], np.float32)


def flip(height, width, direction):
    x, y = direction in ('x', 'xy'), direction in ('y', 'xy')
    return scale(-1 if x else 1, -1 if y else 1, width * x, height * y)


def at_centres(maps, homography, img_shape):
    """Bilinear values under the centres of the cells; 0 outside of the image."""
    h, w = maps.shape[-2:]
    y, x = np.mgrid[:h, :w] + 0.5
    pixels = np.stack((x * img_shape[1] / w, y * img_shape[0] / h, np.ones((h, w))))
    x, y, one = np.einsum('ij,jhw->ihw', np.linalg.inv(homography), pixels)
    x, y = x / one, y / one
    inside = (x > 0) & (x < ORI[1]) & (y > 0) & (y < ORI[0])
    places = (y * h / ORI[0] - 0.5, x * w / ORI[1] - 0.5)
    values = [
        map_coordinates(one.astype(float), places, order=1, mode='nearest') * inside
        for one in maps.reshape(-1, h, w)
    ]
    values = np.reshape(values, maps.shape)
    return values / values.sum((-2, -1), keepdims=True), inside


@pytest.mark.parametrize('homography', [None, np.eye(3), scale(2.083333, 1.6666666)])
def test_without_a_change_but_size_the_maps_stay_as_they_are(homography):
    maps = some_maps(2, 3, 5, 7)
    shape = ORI if homography is None or homography[0, 0] == 1 else (800, 1333.33312)
    warped, found = warp_maps(maps, homography, ORI, shape)
    np.testing.assert_array_equal(warped, maps)
    assert found.shape == (2, 3) and found.all()


@pytest.mark.parametrize(
    'direction, axes', [('x', (-1,)), ('y', (-2,)), ('xy', (-2, -1))]
)
def test_a_flip_reverses_the_array_to_the_bit(direction, axes):
    maps = some_maps(2, 3, 5, 7)
    homography = flip(750, 1000, direction) @ scale(1.5625, 1.5625)
    warped, _ = warp_maps(maps, homography, ORI, (750, 1000))
    np.testing.assert_array_equal(warped, np.flip(maps, axes))


def test_a_crop_enlarges_what_it_shows():
    maps = some_maps(2, 3, 6, 8)
    homography = scale(1.5, 1.25, -200, -130)
    warped, _ = warp_maps(maps, homography, ORI, (330, 610))
    expected, _ = at_centres(maps, homography, (330, 610))
    np.testing.assert_allclose(warped, expected, rtol=1e-5)
    assert abs(warped - maps).max() > 1e-3  # else anything would pass


def test_shear_and_rotation_are_followed():
    maps = some_maps(2, 3, 6, 8)
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 60], [np.sin(angle), np.cos(angle), -90],
         [0, 0, 1]]
    )  # fmt: skip
    for homography in (turn, turn @ scale(1.4, 1.1) @ flip(*ORI, 'x')):
        warped, _ = warp_maps(maps, homography, ORI, ORI)
        expected, inside = at_centres(maps, homography, ORI)
        # cells at the border of the original image count by the part they show
        inner = binary_erosion(inside, np.ones((3, 3)))
        assert inner.sum() > 10
        ratio = warped[..., inner] / expected[..., inner]
        middle = np.broadcast_to(np.median(ratio, -1, keepdims=True), ratio.shape)
        np.testing.assert_allclose(ratio, middle, rtol=1e-4)
        share = warped / expected.clip(1e-9) / middle[..., :1, None]
        assert (share[..., inside] < 1.001).all() and not warped[
            ..., ~binary_dilation(inside, np.ones((3, 3)))
        ].any()


def test_a_quarter_turn_turns_the_array():
    maps = some_maps(2, 6, 6)
    quarter = np.array([[0, -1, 96], [1, 0, 0], [0, 0, 1]])  # clockwise
    warped, _ = warp_maps(maps, quarter, (96, 96), (96, 96))
    np.testing.assert_allclose(warped, np.rot90(maps, -1, (-2, -1)), rtol=1e-5)


def test_padding_gets_nothing_and_what_shrinks_is_averaged():
    maps = some_maps(3, 8, 8)
    # half as large, in the upper left quarter
    warped, _ = warp_maps(maps, scale(0.5, 0.5), ORI, ORI)
    assert not warped[:, 4:].any() and not warped[:, :, 4:].any()
    expected = maps.reshape(3, 4, 2, 4, 2).mean((2, 4))
    expected = expected / expected.sum((-2, -1), keepdims=True)
    np.testing.assert_allclose(warped[:, :4, :4], expected, rtol=1e-5)


def test_a_cell_that_partly_shows_padding_counts_by_the_rest():
    flat = np.full((1, 4, 4), 1 / 16, np.float32)
    # the original image fills the left 5/8 of the final one: 2 1/2 cells of 4
    for homography in (scale(0.625, 1), np.array([[0.625, 1e-4, 0], [0, 1, 0],
                                                  [0, 0, 1]])):  # fmt: skip
        warped, _ = warp_maps(flat, homography, ORI, ORI)
        np.testing.assert_allclose(warped[0, 0], [0.1, 0.1, 0.05, 0], atol=1e-3)


def test_a_map_without_anything_in_the_picture_becomes_uniform():
    maps = some_maps(2, 2, 4, 4)
    maps[0, 1, :, 1:] = 0
    maps[0, 1, :, 0] = 0.25
    warped, found = warp_maps(maps, scale(1, 1, -320), ORI, (480, 320))
    np.testing.assert_array_equal(found, [[True, False], [True, True]])
    np.testing.assert_allclose(warped[0, 1], 1 / 16)
    np.testing.assert_allclose(warped.sum((-2, -1)), 1, rtol=1e-5)


@pytest.mark.parametrize(
    'homography', [scale(0, 1), np.full((3, 3), np.nan), np.eye(2), np.zeros((3, 3))]
)
def test_what_cannot_be_followed_back_is_refused(homography):
    with pytest.raises(ValueError, match='homography_matrix='):
        warp_maps(some_maps(1, 4, 4), homography, ORI, ORI)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_crops_of_crops_are_crops(data):
    """What is in the picture does not depend on the order of the steps."""
    number = st.floats(0, 1)
    ratio = 0.5 + data.draw(number)
    resized = (round(ORI[0] * ratio), round(ORI[1] * ratio))
    crop = [max(8, int(side * (0.3 + 0.7 * data.draw(number)))) for side in resized]
    top, left = (
        int(data.draw(number) * (side - part)) for side, part in zip(resized, crop)
    )
    direction = data.draw(st.sampled_from(['', 'x', 'y', 'xy']))
    resize = scale(resized[1] / ORI[1], resized[0] / ORI[0])
    cut = scale(1, 1, -left, -top)
    maps = some_maps(2, 9, 12)
    once, _ = warp_maps(maps, flip(*crop, direction) @ cut @ resize, ORI, crop)
    plain, _ = warp_maps(maps, cut @ resize, ORI, crop)
    flipped = np.flip(plain, [a for a, d in ((-1, 'x'), (-2, 'y')) if d in direction])
    np.testing.assert_allclose(once, flipped, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(once.sum((-2, -1)), 1, rtol=1e-5)
    assert once.min() >= 0 and once.dtype == np.float32
