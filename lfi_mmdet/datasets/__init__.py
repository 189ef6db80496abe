from . import samplers, transforms
from .caption_scenes import CaptionScenes
from .shapes_dataset import ShapesDataset

__all__ = ['CaptionScenes', 'ShapesDataset', 'samplers', 'transforms']
