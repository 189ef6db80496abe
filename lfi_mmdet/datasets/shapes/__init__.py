"""Scenes of textured shapes: a detection dataset that needs no download."""

from .captions import captions
from .classes import SHAPE_CLASSES, choose_classes
from .config import SceneConfig
from .preview import contact_sheet
from .render import render
from .scene import Scene, sample_scene
from .styles import STYLES
from .writer import generate_dataset, write_png

__all__ = [
    'SHAPE_CLASSES',
    'STYLES',
    'Scene',
    'SceneConfig',
    'captions',
    'choose_classes',
    'contact_sheet',
    'generate_dataset',
    'render',
    'sample_scene',
    'write_png',
]
