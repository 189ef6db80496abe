"""A detector as a function of pixels: the graph that is exported."""

from __future__ import annotations

from typing import Any

from mmdet.structures import DetDataSample
from torch import Tensor, nn

from .known_sizes import KnownSizes

#: Results of a detector, in the order of the graph's outputs
OUTPUTS = ('bboxes', 'scores', 'labels', 'masks')


class DetectorGraph(nn.Module):
    """Pixels of one image in, detections out.

    Args:
        detector: Any detector of mmdet, without a teacher.
        shape: Height and width of the image in pixels, as the network takes it.
    """

    def __init__(self, detector: nn.Module, shape: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.shape = shape

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            image: (1, 3, H, W), values from 0 to 255, channels as the images that the
                ``data_preprocessor`` takes (BGR in mmdet's configs).

        Returns:
            Boxes (K, 4) as x1, y1, x2, y2 in pixels of the image, scores (K,), labels
            (K,), and masks if the detector has any.
        """
        if image.shape != (1, 3, *self.shape):
            raise ValueError(
                f'the image has shape {tuple(image.shape)}; this graph takes '
                f'(1, 3, {self.shape[0]}, {self.shape[1]})'
            )
        sample = DetDataSample(
            metainfo=dict(
                img_shape=self.shape,
                ori_shape=self.shape,
                pad_shape=self.shape,
                batch_input_shape=self.shape,
                scale_factor=(1.0, 1.0),
            )
        )
        predict: Any = self.detector.predict
        with KnownSizes():
            results = predict(
                normalized(image, self.detector.data_preprocessor),
                [sample],
                rescale=False,
            )
        found = results[0].pred_instances
        return tuple(found[name] for name in OUTPUTS if name in found)


def normalized(image: Tensor, preprocessor: Any) -> Tensor:
    """Bring pixels to what the backbone takes, as a ``data_preprocessor`` does."""
    if getattr(preprocessor, '_channel_conversion', False):
        image = image[:, [2, 1, 0]]
    if getattr(preprocessor, '_enable_normalize', False):
        image = (image - preprocessor.mean) / preprocessor.std
    return image
