"""Transforms that move pixels have to say so, and what they say has to be true."""

import cv2
import mmcv.transforms
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks

from lfi_mmdet.datasets.transforms.geometry import (
    ALL,
    CUT,
    MOVE,
    PAD,
    check_geometry,
)
from lfi_mmdet.datasets.transforms.measure_geometry import measure_geometry
from lfi_mmdet.engine.preflight import InputError

SHAPE, RADIUS = (90, 120), 4

FLIP = dict(type='RandomFlip', prob=1.0)
REPORTING = [
    (dict(type='Resize', scale=(200, 160), keep_ratio=True), set()),
    (dict(type='Resize', scale=(201, 77)), set()),
    (dict(type='FixScaleResize', scale=(200, 161), keep_ratio=True), set()),
    (dict(type='FixShapeResize', width=150, height=131), set()),
    (dict(type='FixShapeResize', width=161, height=180, keep_ratio=True), {PAD}),
    (dict(type='RandomResize', scale=(300, 200), ratio_range=(0.4, 1)), set()),
    (dict(type='RandomChoiceResize', scales=[(99, 70), (240, 200)]), set()),
    (dict(type='ResizeShortestEdge', scale=130, max_size=170), set()),
    (dict(type='RandomFlip', prob=1.0, direction='vertical'), set()),
    (dict(type='RandomFlip', prob=1.0, direction='diagonal'), set()),
    (dict(type='RandomFlip', prob=[0.3, 0.7], direction=['horizontal', 'vertical']),
     set()),
    (dict(type='RandomCrop', crop_size=(80, 70)), {CUT}),
    (dict(type='RandomCrop', crop_size=(40, 90), crop_type='absolute_range',
          allow_negative_crop=True), {CUT}),
    (dict(type='RandomCrop', crop_size=(0.5, 0.7), crop_type='relative_range'), {CUT}),
    (dict(type='Pad', size_divisor=32), {PAD}),
    (dict(type='Rotate', prob=1.0, level=4), {MOVE}),
    (dict(type='ShearX', prob=1.0, level=3), {MOVE}),
    (dict(type='ShearY', prob=1.0, level=3), {MOVE}),
    (dict(type='TranslateX', prob=1.0, level=9), {MOVE}),
    (dict(type='TranslateY', prob=1.0, level=9), {MOVE}),
    (dict(type='AutoAugment', policies=[[dict(type='ShearX', prob=1.0, level=3)],
                                        [dict(type='Color', prob=1.0)]]), {MOVE}),
    (dict(type='RandomApply', transforms=[FLIP, dict(type='Pad', size_divisor=32)]),
     {PAD}),
    (dict(type='RandomChoice',  # as in the recipes of DETR
          transforms=[[dict(type='RandomChoiceResize', scales=[(99, 70)])],
                      [dict(type='RandomChoiceResize', scales=[(150, 160)]),
                       dict(type='RandomCrop', crop_size=(100, 90)),
                       dict(type='RandomCrop', crop_size=(0.9, 0.9),
                            crop_type='relative'),
                       dict(type='Resize', scale=(143, 99), keep_ratio=True)]]),
     {CUT}),
    (dict(type='RandomOrder', transforms=[FLIP, dict(type='Resize', scale=(80, 80))]),
     set()),
    (dict(type='Compose', transforms=[FLIP]), set()),
    (dict(type='KeyMapper', transforms=[FLIP]), set()),
]  # fmt: skip


def image_with_a_ball(x, y, background=100):
    image = np.full((*SHAPE, 3), background, np.uint8)
    cv2.circle(image, (int(x), int(y)), RADIUS, (255, 255, 255), -1, cv2.LINE_AA)
    return image


def results_of(x, y):
    image = image_with_a_ball(x, y)
    box = [[x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS]]
    return dict(
        img=image,
        img_shape=SHAPE,
        ori_shape=SHAPE,
        gt_bboxes=HorizontalBoxes(np.array(box, np.float32)),
        gt_bboxes_labels=np.zeros(1, np.int64),
        gt_ignore_flags=np.zeros(1, bool),
        gt_masks=BitmapMasks((image[None, ..., 0] > 200).astype(np.uint8), *SHAPE),
    )


def centre_of_the_ball(image):
    """Centre of what is bright, in pixels from the corner of the image."""
    weight = np.clip(image[..., 0].astype(float) - 170, 0, None)
    if weight.sum() < 1000:
        return None
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    touches = [weight[0], weight[-1], weight[:, 0], weight[:, -1]]
    if any(side.any() for side in touches):
        return None
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize(
    'config, what',
    REPORTING,
    ids=[f'{i}-{c["type"]}' for i, (c, _) in enumerate(REPORTING)],
)
def test_reported_geometry_is_where_the_pixels_are(config, what):
    resize = dict(type='Resize', scale=(150, 150), keep_ratio=True)
    pipeline = Compose([TRANSFORMS.build(c) for c in (resize, FLIP, config, FLIP)])
    assert check_geometry(pipeline.transforms) == what
    seen = 0
    for seed in range(12):
        np.random.seed(seed)
        x, y = np.random.randint((20, 20), (SHAPE[1] - 20, SHAPE[0] - 20))
        results = pipeline(results_of(x, y))
        if results is None:
            continue
        matrix, shape = results['homography_matrix'], results['img'].shape[:2]
        assert tuple(results['img_shape']) == shape
        beyond, cut = measure_geometry(matrix, SHAPE, shape)
        assert what & {PAD, MOVE} or beyond < 1.5
        assert what & {CUT, MOVE} or cut < 1.5
        found = centre_of_the_ball(results['img'])
        if found is None or results['img'].min() == 255:
            continue
        px, py, one = matrix @ (x + 0.5, y + 0.5, 1)
        # mmdet turns and shears around the centres of pixels: half a pixel of slack
        assert np.hypot(*(found - (px / one, py / one))) < 1.5
        seen += 1
    assert seen > 2


STILL = [
    dict(type='PhotoMetricDistortion'),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='Color', prob=1.0, level=3),
    dict(type='AutoContrast', prob=1.0),
    dict(type='CutOut', n_holes=1, cutout_shape=(4, 4)),
    dict(type='RandomGrayscale', prob=1.0, keep_channels=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),
    dict(type='LoadAnnotations', with_mask=True),
]


@pytest.mark.parametrize('config', STILL, ids=[c['type'] for c in STILL])
def test_transforms_of_colours_and_labels_may_stand_anywhere(config):
    transform = TRANSFORMS.build(config)
    assert (
        check_geometry([transform]) == check_geometry([transform], still=True) == set()
    )
    if config['type'].startswith('Load'):
        return
    found = centre_of_the_ball(transform(results_of(50, 40))['img'])
    assert np.hypot(*(found - (50.5, 40.5))) < 1


class MyAugment:
    def __call__(self, results):
        return results


class MyResize(mmcv.transforms.Resize):
    pass


def without_building(name):
    """Some cannot be built without a library or a second dataset."""
    kind = TRANSFORMS.get(name)
    return kind.__new__(kind)


SILENT = [
    'Mosaic', 'CachedMosaic', 'MixUp', 'CachedMixUp', 'CopyPaste', 'RandomAffine',
    'RandomCenterCropPad', 'RandomShift', 'Expand', 'MinIoURandomCrop', 'Albu',
    'InstaBoost', 'MultiBranch', 'CenterCrop', 'TestTimeAug',
]  # fmt: skip


@pytest.mark.parametrize('name', SILENT)
def test_transforms_of_mmdet_that_do_not_report_are_refused_by_name(name):
    steps = [TRANSFORMS.build(FLIP), without_building(name)]
    with pytest.raises(InputError, match=rf'train\.1: {name} .*Take it out') as error:
        check_geometry(steps, key='train')
    assert ('several images' in str(error.value)) == (name in SILENT[:5])


@pytest.mark.parametrize(
    'transform, name',
    [
        (MyAugment(), 'MyAugment'),
        (lambda results: results, '<lambda>'),
        (MyResize(scale=(10, 10)), 'MyResize'),
        (without_building('Resize').__class__.__base__(scale=(1, 1)), 'mmdet.Resize'),
        (mmcv.transforms.RandomFlip(prob=1.0), 'mmdet.RandomFlip'),
    ],
)
def test_what_is_not_known_is_refused_by_name(transform, name):
    with pytest.raises(InputError, match=name):
        check_geometry([transform])


def test_a_user_may_vouch_for_a_class():
    assert check_geometry([MyAugment()], allowed=('MyAugment',)) == ALL
    with pytest.raises(InputError, match=r"allowed=\('MyAugment',\)"):
        check_geometry([MyAugment()], allowed=('MyOther',))


@pytest.mark.parametrize(
    'wrapper',
    [
        lambda step: mmcv.transforms.RandomApply([step]),
        lambda step: mmcv.transforms.RandomChoice([[step], [step]]),
        lambda step: mmcv.transforms.Compose([step]),
        lambda step: mmcv.transforms.KeyMapper([step]),
        lambda step: mmcv.transforms.RandomApply([mmcv.transforms.Compose([step])]),
    ],
)
def test_what_is_wrapped_is_looked_at(wrapper):
    with pytest.raises(InputError, match=r'pipeline\.0\.transforms.*MyAugment'):
        check_geometry([wrapper(MyAugment())])
    assert check_geometry([wrapper(MyAugment())], allowed=('MyAugment',)) == ALL


def test_the_resize_inside_of_a_random_one_has_to_report_as_well():
    transform = TRANSFORMS.build(dict(type='RandomResize', scale=(9, 9)))
    transform.resize = mmcv.transforms.Resize(scale=(9, 9))
    with pytest.raises(InputError, match=r'resize_type.*mmdet\.Resize'):
        check_geometry([transform])


@pytest.mark.parametrize('wrapper', ['KeyMapper', 'TransformBroadcaster'])
def test_a_report_that_a_mapping_of_keys_drops_does_not_count(wrapper):
    config = dict(type=wrapper, mapping=dict(img=['img']), auto_remap=True)
    moving, still = (
        TRANSFORMS.build(dict(config, transforms=[inner]))
        for inner in (FLIP, dict(type='PhotoMetricDistortion'))
    )
    if wrapper == 'TransformBroadcaster':  # this is why
        results = moving(dict(img=[image_with_a_ball(50, 40)]))
        assert 'homography_matrix' not in results
    with pytest.raises(InputError, match='RandomFlip moves pixels where cached'):
        check_geometry([moving])
    assert check_geometry([still]) == set()


CROP = dict(type='RandomCrop', crop_size=(64, 32))
RANGE = dict(type='RandomCrop', crop_size=(0.5, 0.5), crop_type='relative_range')
PAD_32 = dict(type='Pad', size_divisor=32)
RESIZE = dict(type='Resize', scale=(80, 80))
ROTATE = dict(type='Rotate')


@pytest.mark.parametrize(
    'steps, by',
    [
        # as in large-scale jittering: what is padded was not cut
        ([RESIZE, CROP, FLIP, dict(type='Pad', size=(64, 32))], None),
        ([CROP, PAD_32], None),
        ([ROTATE, RANGE, RESIZE], None),
        ([CROP, CROP, RESIZE, FLIP], None),
        ([PAD_32, ROTATE], None),
        ([dict(type='RandomCrop', crop_size=(64, 64)),
          dict(type='Pad', pad_to_square=True)], None),
        ([CROP, dict(type='Pad', pad_to_square=True)], 'RandomCrop'),
        ([CROP, dict(type='Pad', size=(96, 32))], 'RandomCrop'),
        ([CROP, dict(type='Pad', size_divisor=64)], 'RandomCrop'),
        ([CROP, RESIZE, PAD_32], 'RandomCrop'),
        ([CROP, CROP, PAD_32], 'RandomCrop'),
        ([RANGE, PAD_32], 'RandomCrop'),
        ([RANGE, dict(type='FixShapeResize', width=9, height=9, keep_ratio=True)],
         'RandomCrop'),
        ([RANGE, ROTATE], 'RandomCrop'),
        ([ROTATE, PAD_32], 'Rotate'),
        ([ROTATE, ROTATE], 'Rotate'),
        ([dict(type='RandomApply', transforms=[CROP]), PAD_32], None),
        ([dict(type='RandomApply', transforms=[RANGE]), PAD_32], 'RandomCrop'),
        ([dict(type='RandomChoice', transforms=[[CROP], [FLIP], [RANGE]]), PAD_32],
         'RandomCrop'),
        ([dict(type='RandomChoice', transforms=[[RANGE], [PAD_32]])], None),
        ([dict(type='RandomOrder', transforms=[PAD_32, RANGE])], 'RandomCrop'),
        ([dict(type='RandAugment')], '(Rotate|Shear.|Translate.)'),
        ([dict(type='RandAugment', aug_num=1)], None),
    ],
)  # fmt: skip
def test_what_was_cut_off_must_not_be_filled_up(steps, by):
    steps = [TRANSFORMS.build(step) for step in steps]
    if by is None:
        check_geometry(steps)
        return
    with pytest.raises(InputError, match=f'fills up what {by} before'):
        check_geometry(steps)
    check_geometry(steps, allowed=[
        'Pad', 'Rotate', 'FixShapeResize', 'ShearX', 'ShearY', 'TranslateX',
        'TranslateY',
    ])  # fmt: skip


def test_a_homography_does_not_tell_what_was_cut_off():
    """This is why."""
    matrices = []
    for crop in (30, 60):
        np.random.seed(3)
        kind = dict(type='RandomCrop', crop_size=(crop, 90), allow_negative_crop=True)
        steps = [TRANSFORMS.build(c) for c in (kind, dict(type='Pad', size=(120, 90)))]
        steps[0]._rand_offset = lambda margin: (0, 10)
        results = Compose(steps)(results_of(50, 40))
        matrices.append(results['homography_matrix'])
        assert results['img_shape'] == (90, 120)
    assert (matrices[0] == matrices[1]).all()


@pytest.mark.skipif(
    TRANSFORMS.get('Corrupt') is None, reason='this mmdet has no Corrupt'
)
def test_local_distortions_are_no_change_of_colours():
    corrupt = without_building('Corrupt')
    corrupt.corruption = 'gaussian_noise'
    assert check_geometry([corrupt]) == set()
    corrupt.corruption = 'elastic_transform'
    with pytest.raises(InputError, match='Corrupt'):
        check_geometry([corrupt])


@pytest.mark.parametrize(
    'matrix, shape, expected',
    [
        (None, (90, 120), (0, 0)),
        (None, (100, 120), (10, 0)),
        (None, (90, 100), (0, 20)),
        (np.diag((2, 2, 1)), (180, 240), (0, 0)),
        (np.array([[-2, 0, 240], [0, 2, 0], [0, 0, 1]]), (180, 240), (0, 0)),
        (np.array([[1, 0, -30], [0, 1, -10], [0, 0, 1]]), (80, 60), (0, 30)),
        (np.array([[1, 0, 7], [0, 1, 0], [0, 0, 1]]), (90, 120), (7, 7)),
        (np.diag((1, 1, 0.5)), (180, 240), (0, 0)),
    ],
)
def test_how_far_image_and_report_are_apart(matrix, shape, expected):
    assert measure_geometry(matrix, SHAPE, shape) == expected


@pytest.mark.parametrize(
    'matrix',
    [np.zeros((3, 3)), np.diag((1, 0, 1)), np.diag((1, 1, -1)), np.full((3, 3), np.inf),
     np.array([[1, 0, -120], [0, 1, 0], [0, 0, 1]]), np.eye(2)],
)  # fmt: skip
def test_a_report_that_cannot_be_true_is_refused(matrix):
    with pytest.raises(ValueError, match='homography_matrix='):
        measure_geometry(matrix, SHAPE, SHAPE)
