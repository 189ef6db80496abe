"""Pictures of what the interaction queries look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from lfi_mmdet.evaluation.reading import InteractionReading, class_masks
from lfi_mmdet.models.losses.attention import map_divergence

from .figure import displayed_image, save_figure


@dataclass
class MapPanel:
    """One attention map over the unpadded image.

    Attributes:
        title: Whose map it is.
        values: (height, width) in pixels of the image; 1 where the patch gets the
            attention that it would get if all patches were looked at alike.
        kl: KL(teacher || this map) in nats; None for the teacher's own.
    """

    title: str
    values: np.ndarray
    kl: float | None = None


@dataclass
class MapRow:
    """One class in one image.

    Attributes:
        image: RGB, uint8, (height, width, 3).
        label: Name of the class.
        mask: Bool (height, width), where the class is; None if unknown.
        panels: The maps, from left to right.
    """

    image: np.ndarray
    label: str
    mask: np.ndarray | None
    panels: list[MapPanel] = field(default_factory=list)


def map_rows(
    reading: InteractionReading,
    preprocessor: nn.Module,
    class_names: Sequence[str],
    max_classes: int = 2,
    last_only: bool = False,
) -> list[MapRow]:
    """Prepare the rows of a picture from one batch.

    Per class: the teacher's last supervised map, then the student's per layer.

    Args:
        reading: What :func:`read_interactions` gave.
        preprocessor: The detector's data preprocessor.
        class_names: Names of the texts.
        max_classes: Classes per image, at most; the largest in the image.
        last_only: Leave out all but the last layer of the student.
    """
    rows = []
    for b, sample in enumerate(reading.data_samples):
        image = displayed_image(reading.inputs[b], sample, preprocessor)
        masks = class_masks(sample)
        for k in _largest(reading.present[b], masks)[:max_classes]:
            mask = masks.get(k)
            rows.append(
                MapRow(
                    image=image,
                    label=class_names[k],
                    mask=None if mask is None else mask.numpy(),
                    panels=_panels(reading, b, k, image.shape[:2], last_only),
                )
            )
    return rows


def _largest(present: Tensor, masks: dict[int, Tensor]) -> list[int]:
    """Present texts, those with the largest masks first."""
    areas = {k: int(masks[k].sum()) if k in masks else 0 for k in _indices(present)}
    return sorted(areas, key=lambda k: (-areas[k], k))


def _indices(present: Tensor) -> list[int]:
    return present.nonzero().flatten().tolist()


def _panels(
    reading: InteractionReading,
    image: int,
    text: int,
    shape: tuple[int, int],
    last_only: bool,
) -> list[MapPanel]:
    def relative(values: Tensor) -> np.ndarray:
        return relative_map(values, reading, image, shape)

    teacher = relative(reading.pairs[-1].target[image, text])
    title = '' if last_only else f', layer {reading.layers[-1][1]}'
    panels = [MapPanel('teacher' + title, teacher)]
    first = len(reading.pairs) - 1 if last_only else 0
    for pair, (block, _) in zip(reading.pairs[first:], reading.layers[first:]):
        log_map = pair.log_attention[image, text]
        kl = map_divergence(log_map, pair.target[image, text])
        title = 'student' if last_only else f'student, block {block}'
        panels.append(MapPanel(title, relative(log_map.exp()), float(kl)))
    return panels


def relative_map(
    values: Tensor, reading: InteractionReading, image: int, shape: tuple[int, int]
) -> np.ndarray:
    """Upsample a map over the image, in units of the uniform map.

    Args:
        values: Map over the patches, (N,), sums to 1.
        reading: Where the map comes from.
        image: Index of the image in the batch.
        shape: (height, width) of the image in pixels, without padding.

    Returns:
        (height, width), bilinear between the centres of the patches.
    """
    valid = reading.valid[image].view(reading.grid)
    rows, cols = int(valid.any(1).sum()), int(valid.any(0).sum())
    # padded patches would darken the border, so they are cut off, not blended in
    grid = values.view(reading.grid)[:rows, :cols].float() * (rows * cols)

    def positions(length: int, count: int) -> Tensor:
        pixels = torch.arange(length, device=values.device) + 0.5
        return 2 * pixels / (count * reading.patch_size) - 1

    y, x = positions(shape[0], rows), positions(shape[1], cols)
    points = torch.stack(torch.meshgrid(x, y, indexing='xy'), -1)
    sampled = F.grid_sample(
        grid[None, None], points[None], padding_mode='border', align_corners=False
    )
    return sampled[0, 0].cpu().numpy()


def draw_interaction_maps(
    rows: Sequence[MapRow], path: str | Path, cell: float = 2.0
) -> None:
    """Write the picture of :func:`interaction_figure` to a PNG file."""
    save_figure(interaction_figure(rows, cell), path)


def interaction_figure(rows: Sequence[MapRow], cell: float = 2.0) -> Figure:
    """Draw one row per class and image: the image, then its maps.

    All maps of a row share one scale, which ends at the maximum of its first map,
    the teacher's: a query that looks everywhere alike is plainly flat.

    Args:
        rows: At least one; all with the same panels.
        cell: Width of a column in inches.

    Raises:
        ValueError: If there are no rows, or their panels differ.
    """
    titles = {tuple(panel.title for panel in row.panels) for row in rows}
    if len(titles) != 1:
        raise ValueError(
            f'{len(rows)} rows with panels {sorted(titles)}; all rows of a picture '
            'need the same panels, and one row is the least'
        )
    columns = 1 + len(rows[0].panels)
    # the height of a row follows its image, so that no row is framed by white
    heights = [cell * row.image.shape[0] / row.image.shape[1] + 0.25 for row in rows]
    figure = Figure(
        figsize=(cell * columns + 0.6, sum(heights) + 0.25), layout='constrained'
    )
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for r, (row, axes) in enumerate(zip(rows, grid)):
        top = max(float(row.panels[0].values.max()), 2.0)
        norm = PowerNorm(0.5, vmin=0, vmax=top)
        axes[0].imshow(row.image)
        axes[0].set_ylabel(row.label, fontsize=9)
        _finish(axes[0], row, 'image' if r == 0 else '')
        for axis, panel in zip(axes[1:], row.panels):
            _overlay(axis, row.image, panel.values, norm)
            lines = [panel.title] if r == 0 else []
            if panel.kl is not None:
                lines.append(f'KL {panel.kl:.2f}')
            _finish(axis, row, '\n'.join(lines))
        bar = figure.colorbar(
            ScalarMappable(norm, 'inferno'), ax=axes, pad=0.01, aspect=25
        )
        bar.set_ticks([0, 1, top], labels=['0', '1', f'{top:.0f}'])
        bar.ax.tick_params(labelsize=7)
        if r == 0:
            bar.set_label('times uniform', fontsize=7)
    return figure


def _overlay(
    axis: Axes, image: np.ndarray, values: np.ndarray, norm: PowerNorm
) -> None:
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    axis.imshow(grey)
    strength = np.clip(norm(values).filled(0), 0, 1)
    axis.imshow(values, cmap='inferno', norm=norm, alpha=0.35 + 0.5 * strength)


def _finish(axis: Axes, row: MapRow, title: str) -> None:
    axis.set_title(title, fontsize=8, pad=3)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if row.mask is not None and row.mask.any() and not row.mask.all():
        axis.contour(row.mask, levels=[0.5], colors='cyan', linewidths=0.8)
