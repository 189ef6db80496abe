"""Run a study: arms x seeds, paired, restartable, on CPU processes or GPUs.

docs/studies.md describes the study file. Started again, it continues where it was
stopped. tools/report.py makes tables and plots of the results.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from terminaltables import AsciiTable

from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.evaluation.study.executor import Stopped
from lfi_mmdet.evaluation.study.plan import read_study
from lfi_mmdet.evaluation.study.runner import REDO, Selection, StudyRun, slots


def numbers(text: str) -> tuple[int, ...]:
    """Parse whole numbers joined by commas."""
    try:
        return tuple(int(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no list of whole numbers such as 0,1,2'
        ) from None


def words(text: str) -> tuple[str, ...]:
    """Parse names joined by commas."""
    return tuple(text.split(','))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=Path, help='YAML file')
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/studies/ and its name'
    )
    parser.add_argument('--settings', type=words, help='only these, e.g. scenes')
    parser.add_argument('--arms', type=words, help='only these, e.g. twin,lfi')
    parser.add_argument('--seeds', type=numbers, help='only these, e.g. 0,1')
    parser.add_argument(
        '--gpus', type=numbers, help='train on these GPUs, e.g. 0,1; default: the CPU'
    )
    parser.add_argument(
        '--per-gpu', type=int, default=1, help='trainings side by side on each GPU'
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='trainings side by side on the CPU'
    )
    parser.add_argument(
        '--threads', type=int, help='of each training; default: the cores, shared out'
    )
    parser.add_argument(
        '--redo',
        choices=REDO,
        nargs='+',
        default=[],
        help='run again what failed or diverged, or what had another config',
    )
    parser.add_argument(
        '--list', action='store_true', help='show the trainings and what became of them'
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='show the commands, and run none'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag in ('jobs', 'per_gpu', 'threads'):
        value = getattr(args, flag)
        if value is not None and value < 1:
            parser.error(f'--{flag.replace("_", "-")}: {value}; at least 1')
    with plain_errors():
        study = read_study(args.study)
        work = args.work_dir or Path('work_dirs', 'studies', study.name)
        run = StudyRun(study, work, Selection(args.settings, args.arms, args.seeds))
        try:
            tasks = run.make_tasks(workers=os.cpu_count() or 1)
            if args.list or args.dry_run:
                rows = [
                    [task.id, str(task.iterations), run.state(task)] for task in tasks
                ]
                print(AsciiTable([['training', 'iterations', 'state'], *rows]).table)
                if args.dry_run:
                    print(*map(run.shown_command, tasks), sep='\n')
                return 0
            environments = slots(args.gpus, args.per_gpu, args.jobs, args.threads)
            states = run.run(tasks, args.redo, environments)
        except (Stopped, KeyboardInterrupt):
            print(
                f'stopped; the same command continues. Results so far: '
                f'{run.results.path}',
                file=sys.stderr,
            )
            return 130
    ended = [states.get(task.id) for task in tasks]
    bad = [task.id for task, state in zip(tasks, ended) if state != 'finished']
    print(f'{len(tasks) - len(bad)} of {len(tasks)} trainings finished')
    for key in bad:
        end = run.results.ends()[key]
        print(f'{key}: {end["status"]}, {end["reason"]}', file=sys.stderr)
    print(f'results: {run.results.path}')
    return 1 if bad else 0


if __name__ == '__main__':
    raise SystemExit(main())
