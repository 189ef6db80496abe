"""Make tables and plots of the results of a study.

Refuses results whose arms do not match their twins in seed, data or schedule.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.evaluation.study.report import make_report, write_report


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'results', type=Path, nargs='+', help='results.jsonl, of one study'
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='folder for report.md and the rest'
    )
    parser.add_argument(
        '--require-finished',
        action='store_true',
        help='fail unless all runs of the study have finished',
    )
    return parser


def shown(path: Path) -> str:
    """A path without the folders of this machine."""
    here = Path.cwd()
    path = path.resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    command = ['tools/report.py', *map(shown, args.results), '--out', shown(args.out)]
    with plain_errors():
        report = make_report(args.results, command)
    for path in write_report(report, args.out):
        print(path)
    runs = report['runs']
    print(f'{runs["finished"]} of {runs["planned"]} runs finished')
    return int(args.require_finished and runs['finished'] < runs['planned'])


if __name__ == '__main__':
    raise SystemExit(main())
