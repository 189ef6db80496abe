"""Masks of a recorded graph are chosen as mmdet chooses them."""

import pytest
import torch
from mmdet.models.layers import mask_matrix_nms
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


def test_parts_that_are_no_things_do_not_count():
    logits = torch.tensor([[4.0, 0, 0, 0], [0, 0, 3.0, 0]])
    masks = torch.full((2, 4, 4), 2.0)
    found = query_masks(logits, masks, (16, 16), num_things=2, max_num=2)
    expected = float(logits[0].softmax(0)[0] * torch.tensor(2.0).sigmoid())
    assert found.scores.tolist() == [pytest.approx(expected), 0]
    assert found.labels[0] == 0 and found.bboxes[0].tolist() == [0, 0, 16, 16]


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
