"""Say what is missing before some deep import does."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

# module -> the file of requirements/ that installs it
REQUIRED = {
    'torch': 'torch',
    'torchvision': 'torch',
    'mmengine': 'openmmlab',
    'mmcv': 'openmmlab',
    'mmdet': 'openmmlab',
}


def check_requirements() -> None:
    """Check that torch and the OpenMMLab packages can be imported.

    No versions are compared: mmdet itself refuses an mmcv that it cannot work with.

    Raises:
        ImportError: If one of :data:`REQUIRED` is missing.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        files = dict.fromkeys(REQUIRED[name] for name in missing)
        commands = [
            f'pip install {"--no-deps " * (f == "openmmlab")}-r requirements/{f}.txt'
            for f in files
        ]
        if 'openmmlab' in files:
            commands.insert(-1, 'pip install -r requirements/runtime.txt')
        raise ImportError(
            f'lfi_mmdet needs {", ".join(missing)}, not found in this environment. '
            'In a checkout of lfi_mmdet run `make setup` for a new environment, or '
            f'here: {"; ".join(f"`{command}`" for command in commands)}. mmengine, '
            'mmcv and mmdet may also come from the forks onedl-mmengine, onedl-mmcv '
            'and onedl-mmdetection (requirements/openmmlab-forks.txt), which have the '
            'same import names.'
        )
    _check_pkg_resources()


def _check_pkg_resources() -> None:
    if find_spec('pkg_resources') is not None:
        return
    import mmengine
    from mmengine.utils import get_installed_path

    # mmengine imports it inside of this function; newer ones and the forks do not
    if 'pkg_resources' in get_installed_path.__code__.co_names:
        warnings.warn(
            f'mmengine {mmengine.__version__} imports pkg_resources for every config '
            'that inherits from a package (`mmdet::...`), and this environment has no '
            "pkg_resources: setuptools 82 dropped it. Run `pip install 'setuptools<82'`"
            ' or use onedl-mmengine.',
            RuntimeWarning,
            stacklevel=2,
        )
