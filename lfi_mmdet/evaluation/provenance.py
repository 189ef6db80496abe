"""Says where a number was measured, and by which command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def machine(result: Mapping[str, Any]) -> str:
    """Where and with what a result was measured."""
    where = result['gpu'] or f'CPU, {result["cpu_threads"]} threads'
    versions = result['versions']
    names = ('torch', 'mmengine', 'mmcv', 'mmdet')
    return (
        f'{where}; Python {versions["python"]}, '
        + ', '.join(f'{name} {versions[name]}' for name in names)
        + f'; seed {result["seed"]}'
    )


def shown_command(command: Sequence[str]) -> str:
    """A command as a shell takes it."""
    return shlex.join(['python', *command])


def study_source(report: Mapping[str, Any]) -> str:
    """How many runs of a study are there, by which commands, and where."""
    runs, source = report['runs'], report['provenance']
    commands = ', then '.join(f'`{shown_command(c)}`' for c in report['commands'])
    return (
        f'{runs["finished"]} of {runs["planned"]} runs finished; {commands}; '
        f'{"; ".join(source["machines"])}; {"; ".join(source["versions"])}.'
    )
