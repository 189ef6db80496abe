"""Masks of a recorded graph are chosen as mmdet chooses them."""

import contextlib

import pytest
import torch
from mmdet.models.dense_heads import SOLOV2Head
from mmdet.models.layers import mask_matrix_nms
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmdet.structures.mask import mask2bbox
from mmengine.config import ConfigDict

from lfi_mmdet.engine.deploy.fixed_masks import (
    boxes_of_masks,
    grid_masks,
    matrix_decay,
    query_masks,
)
from lfi_mmdet.engine.deploy.known_sizes import KnownSizes


def blobs(count: int, seed: int = 0) -> torch.Tensor:
    """Overlapping rectangles, (count, 24, 32) of bool."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 24, 32, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, 12, (), generator=generator)) for _ in range(2))
        h, w = (int(torch.randint(4, 12, (), generator=generator)) for _ in range(2))
        mask[y : y + h, x : x + w] = True
    return masks


def test_boxes_lie_around_masks_as_in_mmdet():
    masks = blobs(6)
    masks[2] = False
    masks[3, 20, 30] = True
    assert torch.equal(boxes_of_masks(masks), mask2bbox(masks))
    assert boxes_of_masks(masks)[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize('kernel', ['gaussian', 'linear'])
def test_matrix_nms_lowers_scores_as_in_mmdet(kernel):
    masks = blobs(12)
    labels = torch.arange(12) % 2
    scores = torch.linspace(0.9, 0.1, 12)
    expected, _, _, order = mask_matrix_nms(
        masks, labels, scores, kernel=kernel, sigma=2.0
    )
    flat = masks.flatten(1).float()
    found = scores * matrix_decay(flat, flat.sum(1), labels, kernel, 2.0)
    torch.testing.assert_close(found[order], expected)
    assert (found < scores - 0.01).any() and not (found < scores - 0.01).all()


def test_empty_masks_of_a_grid_rank_last_and_take_nothing_from_others():
    features = torch.zeros(1, 2, 8, 8)
    features[0, 0, :4] = 10
    features[0, 1] = 1
    kernels = torch.tensor([[1.0, -5], [0, -5], [0, -5], [1, -5.2]])
    scores = torch.tensor([[0.9, 0], [0.8, 0], [0.7, 0.2], [0, 0.6]])
    cfg = ConfigDict(score_thr=0.1, mask_thr=0.5, filter_thr=0.05, kernel='gaussian',
                     sigma=2.0, nms_pre=4, max_per_img=3)  # fmt: skip
    found = grid_masks(kernels, scores, features, torch.full((4,), 8.0), 1, cfg)
    # two of the masks are empty; the others are of different classes
    maskness = torch.sigmoid(torch.tensor([5.0, 4.8]))
    torch.testing.assert_close(found.scores[:2], torch.tensor([0.9, 0.6]) * maskness)
    assert found.scores[2] == 0 and found.labels[:2].tolist() == [0, 1]
    assert (found.masks[:2] > 0.5).sum((1, 2)).tolist() == [32, 32]
    # of the best pair alone
    one = grid_masks(kernels, scores, features, torch.full((4,), 8.0), 1, cfg, 1)
    assert one.scores.tolist() == [pytest.approx(float(0.9 * maskness[0]))]
    # an object of fewer cells than the stride of its place does not count
    coarse = grid_masks(kernels, scores, features, torch.full((4,), 64.0), 1, cfg)
    assert coarse.scores.tolist() == [0, 0, 0]


@pytest.fixture(scope='module')
def solo():
    """A head of two levels, and what it predicts by."""
    head = SOLOV2Head(
        num_classes=2, in_channels=4, feat_channels=4, stacked_convs=1,
        strides=[4, 8], scale_ranges=((1, 64), (32, 128)), num_grids=[4, 2],
        mask_feature_head=ConfigDict(
            in_channels=4, feat_channels=4, out_channels=3, start_level=0, end_level=1,
            mask_stride=4,
        ),
        loss_mask=dict(type='DiceLoss', use_sigmoid=True),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        norm_cfg=dict(type='GN', num_groups=2),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 12, 16, generator=generator)
    features = torch.nn.functional.avg_pool2d(features, 3, 1, 1) * 9
    kernels = torch.randn(20, 3, generator=generator) * 2
    # several places see the same small thing
    kernels[8:12] = torch.tensor([3.0, 3.0, 3.0])
    kernels[13] = kernels[14]
    scores = torch.rand(20, 2, generator=generator)
    return head, kernels, scores, features


@pytest.mark.parametrize('max_per_img', [5, -1])
@pytest.mark.parametrize('nms_pre', [10, -1])
@pytest.mark.parametrize('filter_thr', [0.05, -1])
@pytest.mark.parametrize('kernel', ['gaussian', 'linear'])
def test_masks_of_a_grid_are_those_of_mmdet(
    solo, kernel, filter_thr, nms_pre, max_per_img
):
    head, kernels, scores, features = solo
    cfg = ConfigDict(score_thr=0.2, mask_thr=0.5, filter_thr=filter_thr, kernel=kernel,
                     sigma=2.0, nms_pre=nms_pre, max_per_img=max_per_img)  # fmt: skip
    meta = dict(img_shape=(48, 64), ori_shape=(48, 64))
    expected = head._predict_by_feat_single(
        kernels, scores.clone(), features, meta, cfg
    )
    strides = torch.tensor([4.0] * 16 + [8.0] * 4)
    found = grid_masks(kernels, scores, features, strides, 1, cfg)
    found = found[found.scores > 0]
    expected = expected[expected.scores > 0]
    assert 2 <= len(expected) < 40
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)
    full = torch.nn.functional.interpolate(found.masks[None], (48, 64), mode='bilinear')
    assert torch.equal(full[0] > 0.5, expected.masks)


def test_masks_of_queries_are_those_of_mmdet():
    head = MaskFormerFusionHead(
        num_things_classes=2, num_stuff_classes=1, test_cfg=ConfigDict(max_per_image=9)
    )
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator) * 3
    masks = torch.randn(7, 6, 8, generator=generator)
    masks[2] = -1  # of no pixel
    full = torch.nn.functional.interpolate(masks[None], (24, 32), mode='bilinear')[0]
    expected = head.instance_postprocess(logits, full)
    expected = expected[expected.scores.argsort(descending=True)]
    found = query_masks(logits, masks, (24, 32), num_things=2, max_num=9)
    number = len(expected)
    assert 3 < number < 9
    torch.testing.assert_close(found.scores[:number], expected.scores)
    assert torch.equal(found.labels[:number], expected.labels)
    assert torch.equal(found.bboxes[:number], expected.bboxes)
    assert (found.scores[number:] == 0).all()


def test_parts_that_are_no_things_do_not_count():
    logits = torch.tensor([[4.0, 0, 0, 0], [0, 0, 3.0, 0]])
    masks = torch.full((2, 4, 4), 2.0)
    found = query_masks(logits, masks, (16, 16), num_things=2, max_num=2)
    expected = float(logits[0].softmax(0)[0] * torch.tensor(2.0).sigmoid())
    assert found.scores.tolist() == [pytest.approx(expected), 0]
    assert found.labels[0] == 0 and found.bboxes[0].tolist() == [0, 0, 16, 16]


@pytest.mark.parametrize('known', [True, False])
def test_a_known_tensor_is_recorded_as_it_is_at_the_time(known):
    class Module(torch.nn.Module):
        def forward(self, image):
            with KnownSizes() if known else contextlib.nullcontext():
                size = known_size(image)
                sum_before = image.flatten()[:2] + size
                size.mul_(10)
                return sum_before

    def known_size(image):
        if known:
            return torch._shape_as_tensor(image)[2:].float()
        return torch.tensor([4.0, 6.0])

    image = torch.zeros(1, 1, 4, 6)
    program = torch.export.export(Module(), (image,), strict=False)
    assert program.module()(image).tolist() == [4, 6]


@pytest.mark.parametrize(
    'write',
    [
        lambda size, image: size.add_(image.sum()),
        lambda size, image: size.__setitem__(0, image.sum()),
        lambda size, image: torch.add(size, image.sum(), out=size),
    ],
)
def test_nothing_of_the_picture_is_written_into_a_known_tensor(write):
    class Module(torch.nn.Module):
        def forward(self, image):
            with KnownSizes():
                size = torch._shape_as_tensor(image)[2:].float()
                write(size, image)
                return size * 2

    with pytest.raises(ValueError, match='writes what follows from the picture'):
        torch.export.export(Module(), (torch.ones(1, 1, 4, 6),), strict=False)


class SizesInTensors(torch.nn.Module):
    """Splits by numbers that it reads from a tensor, as deformable attention does."""

    def forward(self, image):
        height, width = torch._shape_as_tensor(image)[2:]
        places = torch.arange(height) / height
        rows = image.flatten(2).split(
            [int(height * 2), int(height * width - 2 * height)], 2
        )
        return rows[0].sum() + (image * places.view(1, 1, -1, 1)).sum()


def test_sizes_in_tensors_are_known_while_a_graph_is_recorded():
    class Known(SizesInTensors):
        def forward(self, image):
            with KnownSizes():
                return super().forward(image)

    image = torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Exception, match='data is not allocated'):
        torch.export.export(SizesInTensors(), (image,), strict=False)
    program = torch.export.export(Known(), (image,), strict=False)
    torch.testing.assert_close(program.module()(image), SizesInTensors()(image))
