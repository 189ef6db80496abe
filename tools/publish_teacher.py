"""Write the weights of a teacher that was trained from captions, with their record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.engine.teacher_export import export_teacher
from lfi_mmdet.evaluation import run_info
from lfi_mmdet.evaluation.study.machine import commit, machine


def read_gates(given: Sequence[str]) -> Path | dict[str, Path]:
    """One file, or several with their names.

    Raises:
        InputError: If one of several has no name, or two have the same.
    """
    if len(given) == 1 and '=' not in given[0]:
        return Path(given[0])
    gates: dict[str, Path] = {}
    for text in given:
        name, found, path = text.partition('=')
        if not found or not name or name in gates:
            raise InputError(
                f'--gate: {text!r} is not NAME=FILE with a name of its own, which each '
                'of several files needs'
            )
        gates[name] = Path(path)
    return gates


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='of tools/train.py with a CaptionPretrainer')
    parser.add_argument('out', type=Path, help='file of weights to write, .pt')
    parser.add_argument(
        '--gate',
        nargs='+',
        required=True,
        help='teacher.json of tools/check_teacher.py on held-out scenes; several as '
        'NAME=FILE, e.g. line=work_dirs/line/teacher.json',
    )
    parser.add_argument('--command', required=True, help='the command that trained it')
    args = parser.parse_args(argv)
    with plain_errors(0):
        record = dict(
            command=args.command,
            versions=run_info()['versions'],
            machine=machine(),
            **commit(),
        )
        gate = read_gates(args.gate)
        told = export_teacher(args.checkpoint, args.out, gate, record)
    print(
        f'{args.out}: {told["numbers"] / 1e6:.2f} M numbers, '
        f'{told["bytes"] / 1e6:.2f} MB, sha256 {told["sha256"][:12]}; '
        f'temperature {told["temperature"]}'
    )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
