"""Results with what it takes to reproduce them."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import lfi_mmdet


def run_info() -> dict[str, Any]:
    """Command line, versions and machine of the running process."""
    packages = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'timm')
    versions = {name: importlib.import_module(name).__version__ for name in packages}
    cuda = torch.cuda.is_available()
    return dict(
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        versions=dict(
            lfi_mmdet=lfi_mmdet.__version__,
            python=platform.python_version(),
            **versions,
        ),
        gpu=torch.cuda.get_device_name() if cuda else None,
        cpu_threads=torch.get_num_threads(),
    )


def write_json(data: dict[str, Any], path: str | Path) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        data: Plain values; NaN and infinities are refused, they are no JSON.
        path: The file; missing folders are made.
    """
    text = json.dumps(data, indent=2, allow_nan=False) + '\n'
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        aside.write_text(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
