"""Write the weights of a teacher that was trained from captions, with their record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.engine.teacher_export import export_teacher
from lfi_mmdet.evaluation import run_info
from lfi_mmdet.evaluation.study.machine import commit, machine


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='of tools/train.py with a CaptionPretrainer')
    parser.add_argument('out', type=Path, help='file of weights to write, .pt')
    parser.add_argument(
        '--gate',
        type=Path,
        required=True,
        help='teacher.json of tools/check_teacher.py on held-out scenes',
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
        told = export_teacher(args.checkpoint, args.out, args.gate, record)
    print(
        f'{args.out}: {told["numbers"] / 1e6:.2f} M numbers, '
        f'{told["bytes"] / 1e6:.2f} MB, sha256 {told["sha256"][:12]}; '
        f'temperature {told["temperature"]}'
    )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
