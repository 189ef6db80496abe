"""A deployed file finds what the detector finds."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlign, batched_nms
from mmdet.datasets.transforms import Resize
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from lfi_mmdet.engine.deploy import (
    DeployedDetector,
    Description,
    compare,
    describe,
    export_program,
    fixed_shapes,
    rewrites,
    write_program,
)
from lfi_mmdet.engine.deploy.graph import normalized
from lfi_mmdet.engine.preflight import InputError
from tests import small_detectors

SHAPE = (256, 192)
DEPLOYABLE = (
    'mask-rcnn_r50',
    'cascade-mask-rcnn_r50',
    'faster-rcnn_r50',
    'retinanet_r50',
    'fcos_r50',
    'rtmdet-ins_s',
    'dino_r50',
    'mask2former_r50',
    'solov2_r50',
)


def image(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Blocks of colour under noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (shape[0] // 32 + 1, shape[1] // 32 + 1, 3))
    large = blocks.repeat(32, 0).repeat(32, 1)[: shape[0], : shape[1]]
    return (0.8 * large + 0.2 * rng.integers(0, 256, large.shape)).astype(np.uint8)


def decided(name: str) -> nn.Module:
    """A small detector whose random weights tell places and classes apart."""
    detector = small_detectors.build(small_detectors.small_cfg(name))
    detector.teacher = detector.distiller = None
    torch.manual_seed(0)
    for module in detector.modules():
        if getattr(module, 'test_cfg', None) and 'score_thr' in module.test_cfg:
            module.test_cfg.score_thr = 0.2
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    # statistics of these images, for features of a sensible size
    pixels = torch.from_numpy(np.stack([image(seed, (256, 256)) for seed in range(8)]))
    detector.train()
    with torch.no_grad():
        detector.extract_feat((pixels.permute(0, 3, 1, 2) - 120) / 60)
    detector.eval()

    def scale(module, inputs, output):
        # of all levels, the one that spreads most
        factor = module.spread / output.std()
        if not module.scaled or factor < 1:
            module.weight.data *= factor
            output = output * factor
        module.scaled = True
        return output

    hooks = []
    for path, module in detector.named_modules():
        last = path.rpartition('.')[2]
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if 'cls' in last or 'cls.' in path and 'convs' not in path:
                module.spread = 1.0
            elif 'reg' in last or 'reg.' in path and 'convs' not in path:
                module.spread = 0.3
            else:
                continue
            module.scaled = False
            hooks.append(module.register_forward_hook(scale))
    predicted(detector, image(0))
    for hook in hooks:
        hook.remove()
    return detector


def predicted(detector: nn.Module, pixels: np.ndarray) -> InstanceData:
    size = pixels.shape[:2]
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    )
    inputs = [torch.from_numpy(pixels.transpose(2, 0, 1).copy())]
    with torch.no_grad():
        found = detector.test_step(dict(inputs=inputs, data_samples=[sample]))
    return found[0].pred_instances


@pytest.mark.parametrize('name', DEPLOYABLE)
def test_both_formats_find_what_the_detector_finds(name, tmp_path):
    detector = decided(name)
    program = export_program(detector, SHAPE)
    description = describe(detector, SHAPE, small_detectors.CLASSES)
    for suffix in ('.pt2', '.onnx'):
        file = write_program(program, tmp_path / f'model{suffix}', description)
        deployed = DeployedDetector(file)
        assert deployed.description == description
        for seed in (1, 2):
            expected = predicted(detector, image(seed))
            found = deployed(image(seed))
            assert len(expected) >= 5
            assert ('masks' in found) == ('masks' in expected)
            if 'masks' in found:
                assert 0 < found.masks.float().mean() < 1
            agreement = compare(expected, found)
            assert agreement.within(boxes=1e-2, scores=1e-4, masks=1e-2), agreement


@pytest.mark.parametrize('name', ['mask-rcnn_r50', 'retinanet_r50', 'rtmdet-ins_s'])
def test_images_with_few_objects_and_with_none_are_told_alike(name, tmp_path):
    detector = decided(name)
    scores = predicted(detector, image(1)).scores
    part = detector.roi_head if name == 'mask-rcnn_r50' else detector.bbox_head
    part.test_cfg.score_thr = float(scores[6] + scores[7]) / 2
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    deployed = DeployedDetector(file)
    expected = predicted(detector, image(1))
    assert 0 < len(expected) < 100
    agreement = compare(expected, deployed(image(1)))
    assert agreement.within(boxes=0, scores=0, masks=0) and agreement.alone == 0
    grey = np.full((*SHAPE, 3), 120, np.uint8)
    part.test_cfg.score_thr = 0.999
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    assert len(predicted(detector, grey)) == 0
    found = DeployedDetector(file)(grey)
    assert found.bboxes.shape == (0, 4)
    assert name == 'retinanet_r50' or found.masks.shape == (0, *SHAPE)


def test_an_image_of_another_size_is_fitted_and_its_boxes_are_in_its_own_pixels(
    tmp_path,
):
    detector = decided('mask-rcnn_r50')
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    deployed = DeployedDetector(file)
    small = image(1)
    large = small.repeat(2, 0).repeat(2, 1)
    found, expected = deployed(large), deployed(small)
    # shrunk by half it is the small image again
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.bboxes, 2 * expected.bboxes)
    assert found.masks.shape[1:] == large.shape[:2]
    wide = deployed(image(1, (100, 300)))
    assert wide.masks.shape[1:] == (100, 300)
    assert (wide.bboxes <= torch.tensor([300.0, 100.0] * 2)).all()
    assert (wide.bboxes >= 0).all()


def test_a_program_runs_where_neither_mmdet_nor_this_package_is_imported(tmp_path):
    detector = decided('mask-rcnn_r50')
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    np.save(
        tmp_path / 'image.npy', image(1).transpose(2, 0, 1)[None].astype(np.float32)
    )
    script = """
import sys, numpy, torch, torchvision
program = torch.export.load('model.pt2').module()
found = program(torch.from_numpy(numpy.load('image.npy')))
assert not {'mmdet', 'mmcv', 'mmengine', 'lfi_mmdet'} & set(sys.modules)
torch.save(found, 'found.pt')
"""
    subprocess.run([sys.executable, '-c', script], cwd=tmp_path, check=True)
    boxes, scores, labels, masks = torch.load(tmp_path / 'found.pt')
    expected = predicted(detector, image(1))
    torch.testing.assert_close(scores, expected.scores)
    torch.testing.assert_close(boxes, expected.bboxes)
    assert torch.equal(labels, expected.labels)
    assert masks.shape == (100, 28, 28)


def through_the_pipeline(detector, pixels, scale, divisor=1):
    """As mmdet's test pipeline: resized in its ratio, padded after normalizing."""
    results = dict(img=pixels, img_shape=pixels.shape[:2], ori_shape=pixels.shape[:2])
    results = Resize(scale=scale, keep_ratio=True)(results)
    sample = DetDataSample(
        metainfo={
            key: results[key] for key in ('img_shape', 'scale_factor', 'ori_shape')
        }
    )
    detector.data_preprocessor.pad_size_divisor = divisor
    inputs = [torch.from_numpy(results['img'].transpose(2, 0, 1).copy())]
    with torch.no_grad():
        found = detector.test_step(dict(inputs=inputs, data_samples=[sample]))
    return found[0].pred_instances


@pytest.mark.parametrize(
    'name', ['mask-rcnn_r50', 'rtmdet-ins_s', 'mask2former_r50', 'solov2_r50']
)
def test_a_padded_image_is_told_as_mmdets_pipeline_tells_it(name, tmp_path):
    # of 300 x 200 pixels, fitted into 256 x 192, the last 21 of 192 columns are padding
    detector = decided(name)
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    pixels = image(3, (300, 200))
    found = DeployedDetector(file)(pixels)
    expected = through_the_pipeline(detector, pixels, (192, 256), divisor=64)
    assert found.masks.shape[1:] == expected.masks.shape[1:] == (300, 200)
    if name != 'mask-rcnn_r50':  # clips its boxes at the end, as the file does
        agreement = compare(expected, found, max_per_img=100)
        # mmdet scores masks of Mask2Former once they are resized
        scores = 1e-2 if name == 'mask2former_r50' else 1e-4
        assert agreement.within(boxes=1e-2, scores=scores, masks=1e-2), agreement
        return
    # a second stage sees boxes that reach into the padding; most do not
    ours, theirs = (x[x.bboxes[:, 2] < 170] for x in (found, expected))
    theirs = theirs[:40]
    apart = torch.cdist(theirs.bboxes, ours.bboxes, p=torch.inf)
    apart[theirs.labels[:, None] != ours.labels[None]] = torch.inf
    assert len(theirs) > 5 and (apart.min(1).values < 1).float().mean() > 0.9
    agreement = compare(theirs, ours)
    assert agreement.boxes < 1 and agreement.masks < 0.1, agreement


def test_pooling_is_recorded_as_an_operator_that_other_runtimes_know():
    detector = small_detectors.build(small_detectors.small_cfg('mask-rcnn_r50'))
    layers = [m for m in detector.modules() if isinstance(m, RoIAlign)]
    with rewrites.shapes_fixed(detector):
        assert layers and all(layer.use_torchvision for layer in layers)
    assert not any(layer.use_torchvision for layer in layers)


def test_a_mask_of_a_box_that_reaches_into_the_padding_is_not_squeezed(tmp_path):
    deployed = DeployedDetector.__new__(DeployedDetector)
    deployed.description = Description(shape=(100, 200), pad=(0,) * 3, masks='box')
    half = torch.zeros(1, 28, 28)
    half[..., :14] = 1
    answer = [torch.tensor([[60.0, 20, 140, 60]]), torch.ones(1), torch.zeros(1), half]
    deployed._run = lambda pixels: answer
    found = deployed(np.zeros((100, 100, 3), np.uint8))
    assert found.bboxes.tolist() == [[60, 20, 100, 60]]
    columns = found.masks[0, 40].nonzero().flatten()
    assert (columns.min(), columns.max()) == (60, 99)


def test_width_and_height_have_the_scale_that_rounding_left_them():
    deployed = DeployedDetector.__new__(DeployedDetector)
    deployed.description = Description(shape=(96, 160), pad=(0,) * 3)
    pixels, scale = deployed._fit(np.zeros((75, 4000, 3), np.uint8))
    assert scale == (160 / 4000, 3 / 75) and pixels.shape == (1, 3, 96, 160)
    deployed._run = lambda pixels: [
        torch.tensor([[0.0, 0, 160, 3]]), torch.ones(1), torch.zeros(1)
    ]  # fmt: skip
    found = deployed(np.zeros((75, 4000, 3), np.uint8))
    torch.testing.assert_close(found.bboxes, torch.tensor([[0.0, 0, 4000, 75]]))


def test_the_rest_of_an_image_is_filled_as_the_preprocessor_fills_it():
    detector = small_detectors.build(small_detectors.small_cfg('mask-rcnn_r50'))
    mean = describe(detector, SHAPE).pad
    assert mean == pytest.approx((103.53, 116.28, 123.675))
    assert describe(detector, SHAPE, pad=(114,) * 3).pad == (114, 114, 114)
    filled = torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    normal = normalized(filled, detector.data_preprocessor)
    torch.testing.assert_close(normal, torch.zeros_like(normal), atol=1e-5, rtol=0)


def test_a_segmentation_of_everything_is_refused():
    detector = small_detectors.build(small_detectors.small_cfg('mask2former_r50'))
    detector.panoptic_fusion_head.test_cfg.panoptic_on = True
    with pytest.raises(InputError, match='LFIMask2Former cannot.*panoptic_on=False'):
        export_program(detector.eval(), (128, 128))


@pytest.mark.parametrize(
    'name, part, method, message',
    [
        ('solov2_r50', 'mask_head', '_predict_by_feat_single', 'predicts in a way of'),
        ('dino_r50', 'bbox_head', '_predict_by_feat_single', 'its own post-processing'),
        ('mask2former_r50', 'panoptic_head', 'predict', 'its own predict'),
        ('mask2former_r50', 'panoptic_fusion_head', 'instance_postprocess', 'its own'),
    ],
)
def test_a_head_that_predicts_in_its_own_way_is_refused(name, part, method, message):
    detector = small_detectors.build(small_detectors.small_cfg(name)).eval()
    head = getattr(detector, part)
    head.__class__ = type('OwnHead', (type(head),), {method: lambda *args: 1 / 0})
    with pytest.raises(InputError, match=f'{part}.type=OwnHead .*{message}'):
        export_program(detector, (128, 128))


def test_a_part_with_steps_of_its_own_is_refused_by_its_name():
    detector = small_detectors.build(small_detectors.small_cfg('mask-rcnn_r50')).eval()
    nms = detector.roi_head.test_cfg.nms
    detector.roi_head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(InputError, match=r"^model.test_cfg.rcnn.nms.type='soft_nms'"):
        export_program(detector, (128, 128))
    detector.roi_head.test_cfg.nms = dict(nms, max_num=5)
    with pytest.raises(InputError, match=r'test_cfg.rcnn.nms.max_num=5'):
        export_program(detector, (128, 128))
    detector.roi_head.test_cfg.nms = nms

    class OwnMaskHead(type(detector.roi_head.mask_head)):
        def predict_by_feat(self, *args, **kwargs):
            raise AssertionError

    detector.roi_head.mask_head.__class__ = OwnMaskHead
    with pytest.raises(InputError, match='mask_head.type=OwnMaskHead'):
        export_program(detector, (128, 128))
    single = small_detectors.build(small_detectors.small_cfg('retinanet_r50')).eval()

    class OwnHead(type(single.bbox_head)):
        def _bbox_post_process(self, *args, **kwargs):
            raise AssertionError

    single.bbox_head.__class__ = OwnHead
    with pytest.raises(InputError, match='bbox_head.type=OwnHead has its own post'):
        export_program(single, (128, 128))


def test_proposals_that_are_suppressed_are_known_from_any_head():
    results = InstanceData(
        bboxes=torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30.0]]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor([0, 0, 0]),
    )
    cfg = ConfigDict(nms=dict(iou_threshold=0.5), max_per_img=3)
    found = rewrites._dense_boxes(True, results, cfg)
    assert found.scores.tolist() == [pytest.approx(0.9), pytest.approx(0.7), 0]
    assert found.bboxes[2].tolist() == [0, 0, 0, 0]
    assert rewrites._dense_boxes(False, results, cfg).bboxes[2].tolist() != [0] * 4


@pytest.mark.parametrize('threshold, most', [(0.05, 4096), (1e-4, 32768)])
def test_a_low_threshold_lets_more_candidates_pass(threshold, most):
    number, classes = 1000, 40
    boxes = torch.arange(number)[:, None] * 100.0 + torch.tensor([1.0, 1, 9, 9])
    scores = torch.full((number, classes + 1), 0.5)
    # all places apart: whatever passes is kept
    found, _ = fixed_shapes.multiclass_nms(
        boxes, scores, threshold, dict(iou_threshold=0.5)
    )
    assert len(found) == most and (found[:, 4] > 0).all()


def test_a_detector_is_as_before_once_its_graph_is_recorded():
    detector = decided('mask-rcnn_r50')
    before = predicted(detector, image(1))
    export_program(detector, SHAPE)
    after = predicted(detector, image(1))
    assert torch.equal(before.masks, after.masks)
    assert torch.equal(before.bboxes, after.bboxes)


def test_the_best_are_those_of_mmcv_with_zeros_behind():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30.0]]
    )
    scores = torch.tensor([0.5, 0.9, 0.4, 0.8])
    labels = torch.tensor([0, 0, 1, 0])
    nms = dict(type='nms', iou_threshold=0.5)
    dets, kept = batched_nms(boxes, scores, labels, nms)
    top, indices = fixed_shapes.best(boxes, scores, labels, nms, 4)
    assert kept.tolist() == indices[:3].tolist() == [1, 3, 2]
    assert top.tolist() == [*dets[:, 4].tolist(), 0]
    # over all classes, the third is suppressed as well
    nms['class_agnostic'] = True
    top, indices = fixed_shapes.best(boxes, scores, labels, nms, 2)
    assert indices.tolist() == [1, 3]
    with pytest.raises(ValueError, match='soft_nms.*choose nms'):
        fixed_shapes.best(boxes, scores, labels, dict(type='soft_nms'), 2)


def test_small_boxes_and_low_scores_do_not_count():
    results = InstanceData(
        bboxes=torch.tensor([[0, 0, 1, 9], [0, 0, 9, 9.0]]),
        scores=torch.tensor([0.9, 0.8]),
        score_factors=torch.tensor([1.0, 0.5]),
        labels=torch.tensor([0, 0]),
    )
    cfg = ConfigDict(min_bbox_size=2, nms=dict(iou_threshold=0.5), max_per_img=2)
    scores, indices = fixed_shapes.best_of_head(results, cfg)
    assert indices[0] == 1 and scores.tolist() == [pytest.approx(0.4), 0]
    table = torch.tensor([[0.1, 0.6], [0.3, 0.2]])
    scores, labels, places, values = fixed_shapes.filter_scores_and_topk(
        table, 0.15, 3, dict(name=torch.tensor([7, 8]))
    )
    assert scores.tolist() == pytest.approx([0.6, 0.3, 0.2])
    assert labels.tolist() == [1, 0, 1] and places.tolist() == [0, 1, 1]
    assert values['name'].tolist() == [7, 8, 8]


def test_what_is_no_deployed_detector_is_refused(tmp_path):
    with pytest.raises(InputError, match='a.pth ends in none of .onnx, .pt2'):
        DeployedDetector(tmp_path / 'a.pth')
    for suffix in ('.onnx', '.pt2'):
        path = tmp_path / f'a{suffix}'
        with pytest.raises(InputError, match='does not exist'):
            DeployedDetector(path)
        path.write_bytes(b'something else')
        with pytest.raises(InputError, match='no detector that lfi-mmdet deploy'):
            DeployedDetector(path)
