"""Write a trained model for others: weights named by their digest, config, log, record.

Everything of the training is left out: optimizer, averaged copies, distiller. The
queries stay; tools/export_student.py writes a student without them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.engine.publish import Published, publish_model
from lfi_mmdet.evaluation import run_info
from lfi_mmdet.evaluation.study.machine import commit, machine


def main(argv: Sequence[str] | None = None) -> Published:
    """Run the command line; ends the program on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='checkpoint of a training')
    parser.add_argument('folder', help='where to write')
    parser.add_argument('name', help='of the model, e.g. mask-rcnn_vit-s_lfi_coco')
    parser.add_argument('--log', help='its log, such as vis_data/scalars.json')
    parser.add_argument(
        '--metrics', help='JSON file of its evaluation by tools/test.py'
    )
    parser.add_argument('--command', help='the command that trained it')
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='averaged weights of EMAHook, or the last ones; default: those that '
        'tools/test.py takes',
    )
    parser.add_argument(
        '--fp16', action='store_true', help='half precision, in half the space'
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    args = parser.parse_args(argv)
    with plain_errors():
        facts = dict(
            command=args.command,
            versions=run_info()['versions'],
            machine=machine(),
            **commit(),
        )
        told = publish_model(
            args.checkpoint,
            args.folder,
            args.name,
            args.log,
            args.ema,
            facts,
            args.force,
            args.fp16,
            args.metrics,
        )
    print(
        f'{told.weights}: {told.size / 2**20:.1f} MiB, sha256 {told.sha256}; '
        f'{"averaged" if told.averaged else "last"} weights\n'
        f'{told.config}: its config\n{told.record}: its record'
    )
    return told


if __name__ == '__main__':
    main()
