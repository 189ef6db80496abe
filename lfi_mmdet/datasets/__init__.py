from . import transforms
from .shapes_dataset import ShapesDataset

__all__ = ['ShapesDataset', 'transforms']
