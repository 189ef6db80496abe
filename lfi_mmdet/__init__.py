"""Learning from Interactions for MMDetection.

Importing the package registers everything with mmdet; a config needs only
``custom_imports = dict(imports=['lfi_mmdet'])``.
"""

from . import compat

compat.setup()  # before anything imports mmdet: it may have to provide mmcv's ops

from . import datasets, engine, models  # noqa: E402
from .engine.lfi_config import lfi  # noqa: E402
from .shipped import config_path, config_settings  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    '__version__',
    'config_path',
    'config_settings',
    'datasets',
    'engine',
    'lfi',
    'models',
]
