"""Make the installed OpenMMLab packages work with the installed torch."""

import warnings

from lfi_mmdet.compat.requirements_check import check_requirements


def setup() -> None:
    """Prepare the environment; to be called before anything imports mmdet.

    Checks that the required packages are there, lets torch load the checkpoints that
    mmengine writes, and serves mmcv's ops where they are not compiled. Calling it
    again changes nothing.

    Raises:
        ImportError: If a required package is missing.
    """
    # mmengine 0.10.7 imports it, and nothing a user does can change that
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
    check_requirements()
    # These import torch and mmengine, so only the check above may precede them.
    from lfi_mmdet.compat.checkpoints import register_safe_globals
    from lfi_mmdet.compat.mmcv_ops import install_mmcv_ops

    register_safe_globals()
    install_mmcv_ops()


__all__ = ['check_requirements', 'setup']
