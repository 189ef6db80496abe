from . import samplers, transforms
from .caption_scenes import CaptionScenes
from .shapes_dataset import ShapesDataset
from .unlabeled_coco_dataset import UnlabeledCocoDataset

__all__ = [
    'CaptionScenes',
    'ShapesDataset',
    'UnlabeledCocoDataset',
    'samplers',
    'transforms',
]
