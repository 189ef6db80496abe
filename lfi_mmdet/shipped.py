"""Where configs and tools are: in a checkout, or within an installed package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def shipped_root() -> Path:
    """The folder that holds ``configs`` and ``tools``.

    A wheel has them in ``lfi_mmdet/.mim``, where OpenMIM looks for them.
    """
    checkout = _PACKAGE.parent
    # installed into the folder of another project, it is not in a checkout of ours
    known = (checkout / 'setup.py', checkout / 'configs/lfi/metafile.yml')
    return checkout if all(path.is_file() for path in known) else _PACKAGE / '.mim'


def config_path(name: str) -> str:
    """One of our configs, for ``_base_`` of a config elsewhere::

        _base_ = __import__('lfi_mmdet').config_path('lfi/mask-rcnn_vit-s_lfi_coco.py')

    mmengine knows the prefixes of OpenMMLab's packages only (``mmdet::``).

    Args:
        name: Path below ``configs``.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    folder = shipped_root() / 'configs'
    path = folder / name
    if not path.is_file():
        known = sorted(str(p.relative_to(folder)) for p in folder.glob('lfi*/*.py'))
        close = get_close_matches(name, known, 3, 0.3) or known[:3]
        raise FileNotFoundError(f'lfi_mmdet has no config {name!r}; such are {close}')
    return str(path)


def config_settings(name: str) -> dict[str, Any]:
    """All settings of one of our configs, those of its bases included.

    In a config in Python style::

        globals().update(
            __import__('lfi_mmdet').config_settings('lfi/mask-rcnn_vit-s_lfi_coco.py')
        )

    or, of an installed wheel, whose modules ``lfi_mmdet.configs.*`` consist of them::

        with read_base():
            from lfi_mmdet.configs.lfi.mask_rcnn_vit_s_lfi_coco import *

    Args:
        name: As for :func:`config_path`.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    from mmengine.config import Config

    # dicts whose entries are attributes as well, as in a config that inherits
    return dict(Config.fromfile(config_path(name)).items())


def shipped_file(path: str) -> str:
    """A file that our configs name relative to the root, wherever a run is started.

    Args:
        path: Any path.

    Returns:
        It, if there is such a file or folder, or none of ours.
    """
    if not path.startswith('configs/') or Path(path).exists():
        return path
    ours = shipped_root() / path
    return str(ours) if ours.exists() else path
