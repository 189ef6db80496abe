"""Writes the report of a study as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

_NONE = '–'
HINT = (
    'mAP in points (0-100). n: pairs, i.e. seeds that an arm and its twin have both '
    'finished; for a twin, its finished runs. Intervals (95%) are of the mean paired '
    "difference: by bootstrap over pairs, and by Student's t, since the bootstrap's "
    'is too narrow when n is small. p: two-sided sign test on the mask mAP. "To the '
    'twin\'s end": iterations until the mean curve first has the mask mAP that the '
    "twin's ends with, over those that the twin itself needs; after the slash with the "
    'iterations of the pre-training added.'
)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report.

    Args:
        report: What goes into its JSON file.
    """
    parts = [f'# {report["title"]}', _provenance(report), HINT]
    if report['left_out']:
        left = ', '.join(report['left_out'])
        parts.append(f'Left out, since the study file has them no more: {left}.')
    if report['bars']:
        parts += ['## Bars', bars_table(report['bars'])]
    if report['comparisons']:
        parts += ['## Comparisons', comparisons_table(report['comparisons'])]
    for setting in report['settings'].values():
        parts.append(f'## {setting["title"]}')
        for test in setting['tests']:
            if len(setting['tests']) > 1:
                parts.append(f'### Evaluated on {test}')
            parts.append(arms_table(setting, test))
        if setting['selection']:
            parts += ['### Chosen on', selection_table(setting['selection'])]
        notes = _notes(setting)
        if notes:
            parts.append('\n'.join(f'- {note}' for note in notes))
        if setting.get('picture'):
            parts.append(f'![Convergence]({setting["picture"]})')
    return '\n\n'.join(parts) + '\n'


def arms_table(setting: Mapping[str, Any], test: str) -> str:
    """One row per arm, evaluated on one set."""
    head = ['arm', 'runs', 'n', 'box mAP', 'minus twin', 'mask mAP', 'minus twin', 'p']
    curves = test == 'val'
    if curves:
        head.append("to the twin's end")
    rows = []
    for arm in setting['arms'].values():
        differences = (arm.get('minus_twin') or {}).get(test) or {}
        mask = differences.get('segm_mAP')
        n = arm['finished'] if arm['twin'] is None else mask['n'] if mask else 0
        row = [arm['title'], runs_text(arm), str(n)]
        for metric in ('bbox_mAP', 'segm_mAP'):
            row += [
                mean_text(arm['metrics'][test][metric]),
                difference_text(differences.get(metric)),
            ]
        row.append(f'{mask["sign_p"]:.2g}' if mask else _NONE)
        if curves:
            row.append(race_text(arm.get('convergence')))
        rows.append(row)
    return table(head, rows)


def comparisons_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """One row per pair of arms, setting and evaluation set."""
    rows = []
    for item in comparisons:
        name = ' minus '.join(
            asked if asked == chosen else f'{asked} ({chosen or "none finished"})'
            for asked, chosen in zip(item['arms'], item['chosen'], strict=True)
        )
        pending = '; '.join(item.get('pending') or []) or _NONE
        for test, metrics in (item.get('metrics') or {'val': {}}).items():
            mask = metrics.get('segm_mAP')
            rows.append(
                [
                    name,
                    item['setting'],
                    test,
                    str(mask['n']) if mask else '0',
                    difference_text(metrics.get('bbox_mAP')),
                    difference_text(mask),
                    f'{mask["sign_p"]:.2g}' if mask else _NONE,
                    pending,
                ]
            )
    head = ['arms', 'setting', 'on', 'n', 'box mAP', 'mask mAP', 'p', 'open']
    return table(head, rows)


def bars_table(bars: Sequence[Mapping[str, Any]]) -> str:
    """One row per bar."""
    rows = []
    for bar in bars:
        asked = []
        if bar['at_least'] is not None:
            asked.append(f'at least {bar["at_least"]:+g}')
        if bar['at_most'] is not None:
            asked.append(f'at most {bar["at_most"]:g}')
        if bar['interval']:
            asked.append(f'interval {bar["interval"].replace("_", " ")}')
        value = bar.get('value')
        ratio = 'ratio' in bar['metric']
        measured = _NONE
        if value is not None:
            measured = f'{value:.2f}' if ratio else f'{value:+.1f}'
            measured += interval_text(bar.get('interval_found'), bar.get('t'))
        verdict = bar['verdict'] + (f' ({"; ".join(bar["why"])})' if bar['why'] else '')
        arms = ' minus '.join(c or a for a, c in zip(bar['arms'], bar['chosen']))
        rows.append(
            [bar['name'], bar['setting'], arms, bar['metric'], ', '.join(asked)]
            + [measured, str(bar['n']), verdict]
        )
    head = ['bar', 'setting', 'arms', 'of', 'asked', 'measured', 'n', 'verdict']
    return table(head, rows)


def selection_table(selection: Sequence[Mapping[str, Any]]) -> str:
    """One row per run on a selection seed."""
    rows = []
    for run in selection:
        values = [run['metrics'][metric] for metric in ('bbox_mAP', 'segm_mAP')]
        status = run['status'] + (f' ({run["reason"]})' if run['reason'] else '')
        rows.append(
            [run['title'], str(run['seed'])]
            + [_NONE if value is None else f'{value:.1f}' for value in values]
            + ['best of its group' if run['chosen'] else _NONE, status]
        )
    return table(['arm', 'seed', 'box mAP', 'mask mAP', 'chosen', 'run'], rows)


def runs_text(arm: Mapping[str, Any]) -> str:
    """Finished runs of those planned, and what went wrong."""
    text = f'{arm["finished"]}/{arm["planned"]}'
    for status in ('diverged', 'failed'):
        if arm[status]:
            text += f', {arm[status]} {status}'
    return text


def mean_text(value: Mapping[str, Any] | None) -> str:
    """A mean; with its standard deviation, if there is one."""
    if value is None:
        return _NONE
    deviation = '' if value['std'] is None else f' ± {value["std"]:.1f}'
    return f'{value["mean"]:.1f}{deviation}'


def difference_text(value: Mapping[str, Any] | None) -> str:
    """A paired difference and its intervals."""
    if value is None:
        return _NONE
    return f'{value["mean"]:+.1f}{interval_text(value["bootstrap"], value["t"])}'


def interval_text(bootstrap: Any, t: Any) -> str:
    """Both intervals, or nothing."""
    if not bootstrap:
        return ''
    text = f' ({bootstrap[0]:+.1f} to {bootstrap[1]:+.1f}'
    return text + (f'; t {t[0]:+.1f} to {t[1]:+.1f})' if t else ')')


def race_text(value: Mapping[str, Any] | None) -> str:
    """How long an arm takes to where its twin ends."""
    if value is None:
        return _NONE
    told = f'{value["reached_by"]} of {value["n"]} seeds'
    if not value['target']:
        return 'the twin ends at 0'
    if value['ratio'] is None:
        return f'not reached by the mean; by {told}'
    text = f'{value["ratio"]:.2f}'
    if value['ratio_with_pretrain'] != value['ratio']:
        text += f' / {value["ratio_with_pretrain"]:.2f}'
    return f'{text} ({value["iterations"]:.0f} it.; {told})'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    cells = [[str(cell).replace('|', '\\|') for cell in line] for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in cells)


def _notes(setting: Mapping[str, Any]) -> list[str]:
    notes = []
    for arm in setting['arms'].values():
        title = arm['title']
        if arm['pretrain_iters']:
            notes.append(f'{title}: {arm["pretrain_iters"]} iterations of pre-training')
        notes += [f'{title}: {note}' for note in arm['notes']]
        notes += [
            f'{title}, seed {p["seed"]}: {p["status"]} at iteration {p["iteration"]}: '
            f'{p["reason"]}'
            for p in arm['problems']
        ]
        notes += [
            f'{title}, seed {p["seed"]}: an earlier attempt {p["status"]} '
            f'({p["reason"]}); run again on request'
            if p['status'] != 'finished'
            else f'{title}, seed {p["seed"]}: an earlier attempt with another config'
            for p in arm['earlier_attempts']
        ]
    return notes


def _provenance(report: Mapping[str, Any]) -> str:
    source = report['provenance']
    commands = '\n'.join(shlex.join(['python', *c]) for c in report['commands'])
    commits = ', '.join(
        f'{str(c["commit"])[:10]}{" with local changes" if c["dirty"] else ""}'
        for c in source['commits']
    )
    return (
        f'{report["runs"]["finished"]} of {report["runs"]["planned"]} runs finished. '
        f'Commit {commits or _NONE}; on {"; ".join(source["machines"]) or _NONE}; '
        f'{"; ".join(source["versions"]) or _NONE}.\n\n```\n{commands}\n```'
    )
