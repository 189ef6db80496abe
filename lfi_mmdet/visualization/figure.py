"""Figures without pyplot, so that no global backend is touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from lfi_mmdet.models.teachers.view import TeacherView


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: The figure.
        path: The file; missing folders are made.
        dpi: Pixels per inch.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        FigureCanvasAgg(figure).print_figure(aside, format='png', dpi=dpi)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def displayed_image(
    inputs: Tensor, sample: DetDataSample, preprocessor: nn.Module
) -> np.ndarray:
    """Undo the normalisation and the padding of one image.

    Args:
        inputs: The image as the detector gets it, (3, H, W).
        sample: Its data sample.
        preprocessor: The detector's data preprocessor.

    Returns:
        RGB, uint8, (height, width, 3).
    """
    view = TeacherView(tuple(sample.img_shape[:2]), mean=(0, 0, 0), std=(1, 1, 1))
    rgb = view(inputs[None], [sample], preprocessor)[0]
    return (rgb * 255).round().byte().permute(1, 2, 0).cpu().numpy()
