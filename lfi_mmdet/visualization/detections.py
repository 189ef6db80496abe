"""Pictures of predictions beside the ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mmdet.models.detectors import BaseDetector
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from torch import Tensor

from lfi_mmdet.evaluation.reading import evaluation_mode

from .figure import displayed_image, save_figure


def draw_detections(
    model: BaseDetector,
    batches: Iterable[dict],
    metainfo: dict,
    path: str | Path,
    max_images: int = 4,
    score_thr: float = 0.3,
    width: float = 4.0,
) -> None:
    """Draw boxes and masks, the ground truth on the left, predictions on the right.

    Args:
        model: Any mmdet detector.
        batches: A dataloader such as :func:`interaction_dataloader`'s, with ground
            truth in the coordinates of the transformed image.
        metainfo: The dataset's, with ``classes`` and, if it has one, ``palette``.
        path: The PNG file.
        max_images: Images to draw, at most.
        score_thr: Predictions with lower scores are left out.
        width: Width of a column in inches.

    Raises:
        ValueError: If there are no images.
    """
    # not built: that would enter it among mmengine's global instances
    visualizer = VISUALIZERS.get('DetLocalVisualizer')(alpha=0.5)
    visualizer.dataset_meta = {'palette': 'random', **metainfo}
    pairs: list[list[np.ndarray]] = []
    for batch in batches:
        with evaluation_mode(model):
            batch = model.data_preprocessor(batch, training=False)
            samples = model.predict(
                batch['inputs'], batch['data_samples'], rescale=False
            )
        for inputs, sample in islice(
            zip(batch['inputs'], samples), max_images - len(pairs)
        ):
            image = displayed_image(inputs, sample, model.data_preprocessor)
            image, sample = magnify(image, sample)
            sides = []
            for side in ('gt', 'pred'):
                with _fixed_random():  # the visualizer jitters its colours
                    visualizer.add_datasample(
                        'image',
                        image,
                        sample,
                        draw_gt=side == 'gt',
                        draw_pred=side == 'pred',
                        pred_score_thr=score_thr,
                    )
                sides.append(visualizer.get_image())
            pairs.append(sides)
        if len(pairs) >= max_images:
            break
    if not pairs:
        raise ValueError('there are no images to draw detections on')
    heights = [width * left.shape[0] / left.shape[1] for left, _ in pairs]
    figure = Figure(figsize=(2 * width, sum(heights) + 0.3), layout='constrained')
    grid = figure.subplots(len(pairs), 2, squeeze=False, height_ratios=heights)
    for axes, sides in zip(grid, pairs):
        for axis, drawn in zip(axes, sides):
            axis.imshow(drawn)
            axis.set_axis_off()
    grid[0][0].set_title('ground truth', fontsize=9)
    grid[0][1].set_title(f'predictions with a score above {score_thr:g}', fontsize=9)
    save_figure(figure, path)


@contextmanager
def _fixed_random() -> Iterator[None]:
    """Same numbers from NumPy inside every such block, others' unchanged."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def magnify(
    image: np.ndarray, sample: DetDataSample, side: int = 384
) -> tuple[np.ndarray, DetDataSample]:
    """Enlarge a small image, so that lines and labels do not cover its objects.

    Args:
        image: (height, width, 3).
        sample: Its ground truth and predictions; not changed.
        side: Longer side, in pixels, that is about right.

    Returns:
        Both, enlarged by the whole number that comes closest to ``side``.
    """
    factor = max(1, round(side / max(image.shape[:2])))
    sample = sample.clone()

    def enlarge(array: np.ndarray) -> np.ndarray:
        return array.repeat(factor, -2).repeat(factor, -1)

    for name in ('gt_instances', 'pred_instances'):
        instances = sample.get(name).clone()  # the sample's own clone is shallow
        instances.bboxes = instances.bboxes * factor
        if 'masks' in instances:
            masks = instances.masks
            array = (
                masks.cpu().numpy() if isinstance(masks, Tensor) else masks.to_ndarray()
            )
            height, width = (length * factor for length in image.shape[:2])
            enlarged = enlarge(array.astype(np.uint8))[:, :height, :width]
            instances.masks = BitmapMasks(enlarged, height, width)
        setattr(sample, name, instances)
    return enlarge(image.transpose(2, 0, 1)).transpose(1, 2, 0), sample
