"""Checks of what the user gave, before a run starts; each ends in one message."""

from .annotations import check_classes, check_file, load_coco, read_categories
from .captions import check_captions
from .configs import (
    check_checkpoint,
    check_config,
    check_start,
    is_local,
    iter_datasets,
    lists_plain_coco,
)
from .errors import InputError
from .images import check_folder, check_images, missing_files
from .weights import check_weights, unwrap_model

__all__ = [
    'InputError',
    'check_captions',
    'check_checkpoint',
    'check_classes',
    'check_config',
    'check_file',
    'check_folder',
    'check_images',
    'check_start',
    'check_weights',
    'is_local',
    'iter_datasets',
    'lists_plain_coco',
    'load_coco',
    'missing_files',
    'read_categories',
    'unwrap_model',
]
