"""Makes the report of a study out of its results."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfi_mmdet.evaluation.report import write_json

from .pairing import StudyResults, check_pairs, read_results
from .plots import plot_convergence
from .summary import Summary
from .tables import markdown
from .verdicts import verdicts


def make_report(
    paths: Sequence[str | Path], command: Sequence[str] = ()
) -> dict[str, Any]:
    """Read results, check the pairs, and compute all numbers.

    Args:
        paths: Files of results of one study.
        command: The command that makes the report, to be shown in it.

    Raises:
        PairingError: If an arm and its twin do not match.
        InputError: If the files cannot be used.
    """
    results = read_results(paths)
    check_pairs(results)
    summary = Summary(results)
    plan = results.plan
    ends = [run.line for run in results.runs.values()]
    report = dict(
        study=plan['study'],
        title=plan['title'],
        commands=[plan['command'], *([[*command]] if command else [])],
        runs=dict(
            planned=len(plan['runs']),
            finished=sum(line['status'] == 'finished' for line in ends),
        ),
        left_out=results.left_out,
        provenance=_provenance(results),
        bars=verdicts(summary),
        comparisons=summary.comparisons(),
        settings=summary.settings(),
    )
    # keys as a reader of the file gets them
    return json.loads(json.dumps(report))


def write_report(report: dict[str, Any], out: Path) -> list[Path]:
    """Write ``report.md``, ``report.json`` and the plots.

    Args:
        report: Of :func:`make_report`.
        out: The folder.

    Returns:
        What was written.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, setting in report['settings'].items():
        picture = out / f'convergence_{name}.png'
        if plot_convergence(setting, picture):
            setting['picture'] = picture.name
            written.append(picture)
    write_json(report, out / 'report.json')
    aside = out / f'.report.md.{os.getpid()}'
    aside.write_text(markdown(report))
    os.replace(aside, out / 'report.md')
    return [out / 'report.md', out / 'report.json', *written]


def _provenance(results: StudyResults) -> dict[str, Any]:
    lines = [run.line for run in results.runs.values()]
    commits = {
        (start['commit'], start['dirty'])
        for line in lines
        # older lines tell only of the last start, and whether any was dirty
        for start in line.get('starts') or [line]
    }
    machines, versions = set(), set()
    for line in lines:
        machine = line['machine']
        if line['cpu_threads'] is None:
            continue  # it failed before it could tell
        machines.add(
            f'{machine["gpu"] or machine["cpu"]}, {line["cpu_threads"]} threads per run'
        )
        told = line['versions']
        versions.add(', '.join(f'{k} {v}' for k, v in told.items()))
    return dict(
        commits=[
            dict(commit=commit, dirty=dirty)
            for commit, dirty in sorted(commits, key=str)
        ],
        machines=sorted(machines),
        versions=sorted(versions),
    )
