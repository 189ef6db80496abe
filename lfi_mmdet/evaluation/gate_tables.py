"""Writes how good teachers are, and what they were good for, as Markdown."""

from __future__ import annotations

from typing import Any

from .provenance import machine, shown_command, study_source
from .study.tables import difference_text, mean_text, table


def gate(result: dict) -> str:
    """How good the maps of a teacher are, layer by layer."""
    lines = [
        '| reading | layer | presence AUC | pointing, two classes or more | chance |',
        '|---|---|---|---|---|',
        *(gate_row([row['reading'], row['layer']], row) for row in result['layers']),
    ]
    return '\n'.join(
        [*lines, '', f'{result["num_images"]} images; {gate_source(result)}.']
    )


def gates(results: dict) -> str:
    """How good the maps of a teacher are on several sets: its best layer on each."""
    lines = [
        '| scenes | reading, layer | presence AUC | pointing, two classes or more | '
        'chance |',
        '|---|---|---|---|---|',
    ]
    for name, result in results.items():
        best = best_layer(result)
        lines.append(gate_row([name, f'{best["reading"]}, {best["layer"]}'], best))
    sources = [
        f'{name}: {result["num_images"]} images; {gate_source(result)}.'
        for name, result in results.items()
    ]
    return '\n'.join([*lines, '', *(f'- {source}' for source in sources)])


def best_layer(result: dict) -> dict:
    """The layer that knows best what is shown; of equals, the one that points best."""
    return max(
        (layer for layer in result['layers'] if layer['presence_auc']),
        key=lambda layer: [
            layer[name]['value'] if layer[name] else 0.0
            for name in ('presence_auc', 'pointing_multi')
        ],
    )


def gate_row(first: list[str], layer: dict) -> str:
    """One row of a gate: what it is of, and what a layer scored."""
    pointing = layer['pointing_multi']
    cells = [*first, estimate(layer['presence_auc']), estimate(pointing)]
    cells.append(f'{pointing["chance"]:.3f}' if pointing else '-')
    return '| ' + ' | '.join(cells) + ' |'


def gate_source(result: dict) -> str:
    """The command of a gate, and where it ran."""
    command = shown_command([f'tools/{result["command"][0]}', *result['command'][1:]])
    return f'`{command}`, {machine(result)}'


def estimate(value: dict | None) -> str:
    """A value with its interval, if there is one."""
    if value is None:
        return '-'
    if value['low'] is None:
        return f'{value["value"]:.3f}'
    return f'{value["value"]:.3f} ({value["low"]:.3f}-{value["high"]:.3f})'


def doses(found: dict) -> str:
    """What students gained from teachers of different quality, best teacher first.

    Args:
        found: The report of the study as ``report``, and what ``check_teacher`` says of
            an arm's teacher under the name of the arm.
    """
    report = found['report']
    (setting,) = report['settings'].values()
    told: dict[str, Any] = {}
    rows = []
    for name, arm in setting['arms'].items():
        layer: dict = {}
        if arm['twin'] is not None:
            told[name] = found[name]
            layer = best_layer(found[name])
        pointing = layer.get('pointing_multi')
        gains = (arm.get('minus_twin') or {}).get('val') or {}
        row = [arm['title'], estimate(pointing)]
        for metric in ('bbox_mAP', 'segm_mAP'):
            row.append(mean_text(arm['metrics']['val'][metric]))
            row.append(difference_text(gains.get(metric)))
        rows.append((pointing['value'] if pointing else 2.0, row))
    rows.sort(key=lambda pair: pair[0], reverse=True)
    head = ['teacher', 'pointing, two classes or more', 'box mAP', 'minus twin',
            'mask mAP', 'minus twin']  # fmt: skip
    lines = [table(head, [row for _, row in rows]), '', study_source(report), '']
    lines += [f'- {name}: {gate_source(result)}.' for name, result in told.items()]
    return '\n'.join(lines)
