"""Say what is missing before some deep import does."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

REQUIRED = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet')


def check_requirements() -> None:
    """Check that torch and the OpenMMLab packages can be imported.

    No versions are compared: mmdet itself refuses an mmcv that it cannot work with.

    Raises:
        ImportError: If one of :data:`REQUIRED` is missing.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'lfi_mmdet needs {", ".join(missing)}, not found in this environment. '
            'In a checkout of lfi_mmdet, `make setup` makes an environment with the '
            'tested versions; to add them to this one, run '
            '`pip install -r requirements/torch.txt -r requirements/runtime.txt` and '
            '`pip install --no-deps -r requirements/openmmlab.txt`. mmengine, mmcv '
            'and mmdet may as well be the forks onedl-mmengine, onedl-mmcv and '
            'onedl-mmdetection (requirements/openmmlab-forks.txt): they have the same '
            'import names.'
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
