"""The ops of the substitute against plain references, through mmcv's own callers."""

import importlib
import math

import numpy as np
import pytest
import torch

from lfi_mmdet.compat import setup, torchvision_ops

setup()

from mmcv import ops  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param(
        'cuda',
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device'),
        ],
    ),
]


@pytest.fixture(autouse=True)
def substitute(monkeypatch):
    """Test ours even where mmcv has compiled ops."""
    for name in ('nms', 'roi_align', 'focal_loss'):
        module = importlib.import_module(f'mmcv.ops.{name}')
        monkeypatch.setattr(module, 'ext_module', torchvision_ops)


def random_boxes(n, seed, size=100.0):
    """Boxes of which some reach beyond a square image of ``size`` pixels."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-0.3 * size, size, (n, 2))
    sides = rng.uniform(1, 0.6 * size, (n, 2))
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.05, 0.95, n)).astype(np.float32)
    return boxes, scores


def iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0.0) * max(height, 0.0)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    union = area_a + area_b - inter
    return inter / union if union else 0.0


def reference_nms(boxes, scores, threshold, offset):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def reference_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    alive = {i: float(score) for i, score in enumerate(scores)}
    kept = []
    while alive:
        best = max(alive, key=lambda i: (alive[i], -i))
        kept.append((best, alive.pop(best)))
        for i in list(alive):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                alive[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                alive[i] *= (1 - overlap) if method == 'linear' else 0.0
            if alive[i] < min_score:
                del alive[i]
    return kept


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3])
@pytest.mark.parametrize('seed', range(3))
def test_nms_keeps_what_the_reference_keeps(device, offset, threshold, seed):
    boxes, scores = random_boxes(40, seed)
    dets, kept = ops.nms(
        torch.tensor(boxes, device=device),
        torch.tensor(scores, device=device),
        threshold,
        offset=offset,
    )
    assert kept.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert 1 < len(kept) < len(boxes)
    assert kept.dtype == torch.int64 and kept.device.type == device
    expected = np.concatenate([boxes, scores[:, None]], axis=1)[kept.tolist()]
    assert np.array_equal(dets.cpu().numpy(), expected)


def test_nms_offset_counts_the_last_pixel():
    # 2 x 2 pixels each, one column shared: IoU 0 by corners, 2 / 6 by pixels
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]


def test_nms_keeps_the_first_of_equal_scores():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]])
    scores = torch.full((3,), 0.5)
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == [0, 2]


def test_nms_keeps_a_box_whose_iou_is_just_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.49)[1].tolist() == [0]


@pytest.mark.parametrize('device', DEVICES)
def test_nms_and_soft_nms_of_nothing_are_empty(device):
    boxes = torch.zeros(0, 4, device=device)
    scores = torch.zeros(0, device=device)
    for dets, kept in (ops.nms(boxes, scores, 0.5), ops.soft_nms(boxes, scores)):
        assert dets.shape == (0, 5)
        assert kept.shape == (0,) and kept.dtype == torch.int64
        assert kept.device.type == device


def test_nms_takes_numpy_score_threshold_and_limit():
    boxes, scores = random_boxes(40, seed=5)
    dets, kept = ops.nms(boxes, scores, 0.4, score_threshold=0.5, max_num=3)
    expected = [i for i in reference_nms(boxes, scores, 0.4, 0) if scores[i] > 0.5]
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == expected[:3]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_computes_half_precision_boxes_in_full(device, dtype):
    boxes, scores = random_boxes(40, seed=1)
    boxes = torch.tensor(boxes, device=device).to(dtype)
    scores = torch.tensor(scores, device=device).to(dtype)
    dets, kept = ops.nms(boxes, scores, 0.4)
    assert dets.dtype == dtype
    assert kept.tolist() == reference_nms(boxes.tolist(), scores.tolist(), 0.4, 0)


def test_batched_nms_does_not_mix_classes():
    boxes, scores = random_boxes(30, seed=2)
    labels = np.arange(30) % 3
    _, kept = ops.batched_nms(
        torch.tensor(boxes),
        torch.tensor(scores),
        torch.tensor(labels),
        dict(type='nms', iou_threshold=0.4),
    )
    expected = []
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        expected += [rows[i] for i in reference_nms(boxes[rows], scores[rows], 0.4, 0)]
    assert sorted(kept.tolist()) == sorted(expected)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('min_score', [1e-3, 0.3])
def test_soft_nms_scores_like_the_reference(offset, method, min_score):
    boxes, scores = random_boxes(40, seed=7)
    settings = (0.3, 0.5, min_score, method, offset)
    dets, kept = ops.soft_nms(torch.tensor(boxes), torch.tensor(scores), *settings)
    expected = reference_soft_nms(boxes, scores, *settings)
    assert kept.tolist() == [i for i, _ in expected]
    assert np.allclose(dets[:, 4], [score for _, score in expected], atol=1e-5)
    assert np.array_equal(dets[:, :4].numpy(), boxes[kept.tolist()])


def test_soft_nms_survives_boxes_without_area():
    boxes = torch.tensor([[3.0, 1, 3, 1], [3, 1, 3, 1], [0, 0, 5, 5]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for method in ('linear', 'gaussian'):
        dets, kept = ops.soft_nms(boxes, scores, method=method)
        assert kept.tolist() == [0, 1, 2]
        assert torch.equal(dets[:, 4], scores)


def test_soft_nms_keeps_the_best_box_however_low_its_score():
    boxes = torch.tensor([[0.0, 0, 5, 5], [50, 50, 60, 60]])
    _, kept = ops.soft_nms(boxes, torch.tensor([1e-4, 1e-5]), min_score=0.1)
    assert kept.tolist() == [0]


def test_nms_match_groups_each_box_with_its_suppressor():
    boxes, scores = random_boxes(40, seed=3)
    left = sorted(range(40), key=lambda i: -scores[i])
    expected = []
    while left:
        best, *left = left
        group = [i for i in left if iou(boxes[best], boxes[i], 0) >= 0.3]
        left = [i for i in left if i not in group]
        expected.append([best, *group])
    dets = torch.tensor(np.concatenate([boxes, scores[:, None]], axis=1))
    assert [group.tolist() for group in ops.nms_match(dets, 0.3)] == expected


def interpolate(plane, y, x):
    """Bilinear value of (C, H, W) at a point; 0 beyond one cell of its border."""
    height, width = plane.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.shape[0])
    y = min(max(y, 0.0), height - 1)
    x = min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[:, top, left] * (1 - dx) + plane[:, top, right] * dx
    lower = plane[:, bottom, left] * (1 - dx) + plane[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def reference_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    """Sample by sample, in float64, differentiable by ``features``."""
    regions = []
    for image, *corners in rois.double().tolist():
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.0) for c in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        rows = sampling_ratio or math.ceil(bin_h)
        cols = sampling_ratio or math.ceil(bin_w)
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [
                    interpolate(
                        features[int(image)],
                        y1 + (i + (u + 0.5) / rows) * bin_h,
                        x1 + (j + (v + 0.5) / cols) * bin_w,
                    )
                    for u in range(rows)
                    for v in range(cols)
                ]
                regions.append(torch.stack(samples).mean(0))
    return torch.stack(regions).reshape(len(rois), *size, -1).permute(0, 3, 1, 2)


def features_and_rois(seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 9, 12, generator=generator)
    boxes = torch.tensor(random_boxes(5, seed, size=40.0)[0])
    # one far outside of the image, which is 36 x 48 pixels
    boxes = torch.cat([boxes, torch.tensor([[200.0, 200.0, 240.0, 230.0]])])
    images = torch.arange(len(boxes))[:, None] % 2
    return features, torch.cat([images, boxes], dim=1)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_and_its_gradient_match_the_reference(
    device, aligned, sampling_ratio
):
    features, rois = features_and_rois()
    reference = features.double().requires_grad_()
    expected = reference_roi_align(
        reference, rois, (3, 4), 0.25, sampling_ratio, aligned
    )
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()

    given = features.to(device).requires_grad_()
    pooled = ops.roi_align(
        given, rois.to(device), (3, 4), 0.25, sampling_ratio, 'avg', aligned
    )
    (pooled * weights.to(device)).sum().backward()

    assert torch.allclose(pooled.cpu().double(), expected, atol=1e-5)
    assert torch.allclose(given.grad.cpu().double(), reference.grad, atol=1e-5)
    assert pooled[-1].abs().max() == 0
    assert reference.grad.abs().max() > 0


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_computes_half_precision_in_full(device, dtype):
    features, rois = features_and_rois(seed=4)
    features, rois = features.to(device, dtype), rois.to(device, dtype)
    full = features.float().requires_grad_()
    expected = ops.roi_align(full, rois.float(), 3, 0.25)
    expected.sum().backward()

    half = features.clone().requires_grad_()
    pooled = ops.roi_align(half, rois, 3, 0.25)
    pooled.sum().backward()

    # rounded once, at the end
    assert torch.equal(pooled, expected.to(dtype))
    assert torch.equal(half.grad, full.grad.to(dtype))


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_of_no_regions_is_empty_and_has_a_zero_gradient(device):
    features = torch.randn(1, 3, 8, 8, device=device, requires_grad=True)
    pooled = ops.roi_align(features, torch.zeros(0, 5, device=device), 7)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_roi_align_takes_a_gradient_that_is_not_contiguous():
    features, rois = features_and_rois()
    grads = []
    for fill in (lambda x: x, lambda x: x.transpose(2, 3)):
        given = features.clone().requires_grad_()
        pooled = fill(ops.roi_align(given, rois, 3, 0.25))
        pooled.backward(fill(torch.arange(9.0).reshape(3, 3).expand(6, 3, 3, 3)))
        grads.append(given.grad)
    assert torch.equal(*grads)


def test_roi_align_refuses_max_pooling_by_name():
    features, rois = features_and_rois()
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        ops.roi_align(features, rois, 3, 0.25, 0, 'max')


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss_and_its_gradient_follow_the_definition(
    device, dtype, weighted
):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(12, 4, generator=generator) * 3).to(device, dtype)
    background = 0 if weighted else 1
    target = torch.randint(4 + background, (12,), generator=generator).to(device)
    weight = torch.rand(4, generator=generator).to(device) if weighted else None

    reference = logits.double().requires_grad_()
    p = reference.sigmoid()
    hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    p_t = torch.where(hot == 1, p, 1 - p)
    alpha_t = torch.where(hot == 1, 0.25, 0.75)
    expected = -alpha_t * (1 - p_t) ** 2 * p_t.log()
    if weighted:
        expected = expected * weight[target, None]
    expected.sum().backward()

    given = logits.clone().requires_grad_()
    losses = ops.sigmoid_focal_loss(given, target, 2.0, 0.25, weight, 'none')
    losses.sum().backward()

    close = dict(atol=1e-5, rtol=1e-4 if dtype == torch.float32 else 1e-2)
    assert losses.dtype == given.grad.dtype == dtype
    assert torch.allclose(losses.double(), expected, **close)
    assert torch.allclose(given.grad.double(), reference.grad, **close)


def test_sigmoid_focal_loss_stays_finite_for_extreme_logits():
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0]), 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * 200 + 0.75 * 200)
    assert torch.allclose(logits.grad, torch.tensor([[-0.25, 0.75]]))
