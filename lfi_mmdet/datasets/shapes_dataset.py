"""The generated scenes as an mmdet dataset."""

import colorsys

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from .shapes.classes import SHAPE_CLASSES

#: Classes of a dataset written by ``tools/make_shapes.py`` without ``--classes``
DEFAULT_CLASSES = tuple(SHAPE_CLASSES[:12])


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """COCO-format scenes of :mod:`lfi_mmdet.datasets.shapes`."""

    METAINFO = dict(
        classes=DEFAULT_CLASSES,
        palette=[
            tuple(int(255 * c) for c in colorsys.hsv_to_rgb(i / 12, 0.8, 0.9))
            for i in range(12)
        ],
    )
