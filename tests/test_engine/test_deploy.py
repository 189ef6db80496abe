"""A deployed file finds what the detector finds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlign
from mmdet.datasets.transforms import Resize
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmengine.utils import get_installed_path
from torch import nn

from lfi_mmdet.engine.deploy import (
    DeployedDetector,
    Description,
    compare,
    describe,
    export_program,
    rewrites,
    write_program,
)
from lfi_mmdet.engine.deploy.graph import normalized
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


def decided(name: str, options: dict | None = None) -> nn.Module:
    """A small detector whose random weights tell places and classes apart."""
    cfg = small_detectors.small_cfg(name)
    cfg.merge_from_dict(options or {})
    detector = small_detectors.build(cfg)
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


@pytest.mark.parametrize('name', ['mask2former_r50', 'rtmdet-ins_s'])
def test_masks_are_in_place_where_the_shape_is_no_multiple_of_their_grid(
    name, tmp_path
):
    shape = (250, 189)
    detector = decided(name)
    detector.data_preprocessor.pad_size_divisor = 1
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, shape), file, describe(detector, shape))
    expected = predicted(detector, image(1, shape))
    agreement = compare(expected, DeployedDetector(file)(image(1, shape)))
    assert agreement.within(boxes=1e-2, scores=1e-4, masks=1e-3), agreement


def test_kernels_of_three_by_three_have_masks_of_the_same_size(tmp_path):
    detector = decided('solov2_r50', {'model.mask_head.dynamic_conv_size': 3})
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    expected = predicted(detector, image(1))
    agreement = compare(expected, DeployedDetector(file)(image(1)))
    assert agreement.detections > 5
    assert agreement.within(boxes=0, scores=1e-4, masks=1e-3), agreement


def test_boxes_of_queries_are_in_the_pixels_of_a_larger_image(tmp_path):
    detector = decided('dino_r50')
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    deployed, small = DeployedDetector(file), image(1)
    found, expected = deployed(small.repeat(2, 0).repeat(2, 1)), deployed(small)
    torch.testing.assert_close(found.bboxes, 2 * expected.bboxes)


def test_a_head_of_detrs_family_without_deformable_attention(tmp_path):
    cfg = Config.fromfile(
        Path(
            get_installed_path('mmdet'), '.mim/configs/detr/detr_r50_8xb2-150e_coco.py'
        )
    ).model
    cfg.backbone.update(depth=18, base_channels=8, init_cfg=None)
    cfg.neck.in_channels = [64]
    cfg.update(num_queries=12, encoder=dict(cfg.encoder, num_layers=1))
    cfg.decoder.num_layers = 1
    cfg.bbox_head.num_classes = 3
    cfg.test_cfg.max_per_img = 12
    torch.manual_seed(0)
    detector = MODELS.build(cfg).eval()
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    agreement = compare(predicted(detector, image(1)), DeployedDetector(file)(image(1)))
    assert agreement.detections == 12
    assert agreement.within(boxes=1e-2, scores=1e-4, masks=0), agreement


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
    # of 300 x 200 pixels, fitted into 256 x 192, the last 21 of 192 columns are
    # padding; mmdet is to pad as much, as these detectors see how much that is
    detector = decided(name)
    file = tmp_path / 'model.pt2'
    write_program(export_program(detector, SHAPE), file, describe(detector, SHAPE))
    pixels = image(3, (300, 200))
    found = DeployedDetector(file)(pixels)
    expected = through_the_pipeline(detector, pixels, (192, 256), divisor=64)
    assert found.masks.shape[1:] == expected.masks.shape[1:] == (300, 200)
    if name != 'mask-rcnn_r50':  # clips its boxes at the end, as the file does
        agreement = compare(expected, found, max_per_img=100)
        assert agreement.within(boxes=1e-2, scores=1e-4, masks=1e-2), agreement
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


def test_what_lies_in_the_padding_as_a_whole_is_left_out():
    deployed = DeployedDetector.__new__(DeployedDetector)
    deployed.description = Description(shape=(100, 200), pad=(0,) * 3, masks='box')
    boxes = [[110.0, 20, 180, 60], [60, 20, 90, 60], [120, 0, 150, 100]]
    answer = [
        torch.tensor(boxes),
        torch.ones(3),
        torch.arange(3),
        torch.ones(3, 28, 28),
    ]
    deployed._run = lambda pixels: answer
    found = deployed(np.zeros((200, 200, 3), np.uint8))
    assert found.labels.tolist() == [1] and found.masks.shape == (1, 200, 200)
    # of another ratio, the padding is below
    answer[0] = torch.tensor([[0.0, 70, 90, 95], [60, 20, 90, 55], [0, 51, 200, 60]])
    found = deployed(np.zeros((50, 200, 3), np.uint8))
    assert found.labels.tolist() == [1]
    # without padding, boxes at the edge stay, as in mmdet
    answer[0] = torch.tensor([[200.0, 70, 200, 95], [60, 20, 90, 60], [0, 100, 9, 100]])
    found = deployed(np.zeros((100, 200, 3), np.uint8))
    assert found.labels.tolist() == [0, 1, 2]


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


def test_a_detector_is_as_before_once_its_graph_is_recorded():
    detector = decided('mask-rcnn_r50')
    before = predicted(detector, image(1))
    export_program(detector, SHAPE)
    after = predicted(detector, image(1))
    assert torch.equal(before.masks, after.masks)
    assert torch.equal(before.bboxes, after.bboxes)
