"""Draws how the arms of a study converge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lfi_mmdet.visualization.figure import save_figure

_TITLES = {'bbox_mAP': 'box mAP', 'segm_mAP': 'mask mAP'}


def plot_convergence(setting: Mapping[str, Any], path: Path) -> bool:
    """Draw mean curves with bands of one standard deviation over the seeds.

    An arm with a pre-training appears a second time, dashed and without a band, moved
    by the iterations of that.

    Args:
        setting: As in the report.
        path: PNG to write.

    Returns:
        Whether there was anything to draw.
    """
    arms = [arm for arm in setting['arms'].values() if arm['curves']['segm_mAP']]
    if not arms:
        return False
    figure = Figure(figsize=(5 * len(_TITLES) + 2, 3.8), layout='constrained')
    axes = figure.subplots(1, len(_TITLES))
    for axis, (metric, title) in zip(axes, _TITLES.items(), strict=True):
        for number, arm in enumerate(arms):
            colour = f'C{number % 10}'
            curve, bands = arm['curves'][metric], arm['bands'][metric]
            steps = sorted(curve, key=int)
            x = [int(step) for step in steps]
            y = [curve[step] for step in steps]
            label = f'{arm["title"]} (n={arm["finished"]})'
            axis.plot(x, y, '.-', color=colour, label=label)
            axis.fill_between(
                x,
                [bands[step][0] for step in steps],
                [bands[step][1] for step in steps],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            if arm['pretrain_iters']:
                moved = [step + arm['pretrain_iters'] for step in x]
                axis.plot(moved, y, '--', color=colour, alpha=0.6)
        axis.set_xlabel('iterations (dashed: pre-training counted)')
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('points')
    handles, labels = axes[0].get_legend_handles_labels()
    # beside the axes: a dozen arms would hide the curves
    figure.legend(handles, labels, loc='outside right upper', fontsize='small')
    figure.suptitle(setting['title'])
    save_figure(figure, path)
    return True
