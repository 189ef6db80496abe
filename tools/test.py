"""Test a detector, with the flags of MMDetection's tools/test.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import Config

from lfi_mmdet.engine.command_line import (
    add_common_arguments,
    build_runner,
    load_config,
    process_number,
)
from lfi_mmdet.engine.distributed import leave_distributed, setup_distributed
from lfi_mmdet.engine.inference import (
    DumpWhole,
    augment,
    show_predictions,
    without_teacher,
)
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.engine.preflight import (
    check_checkpoint,
    check_config,
    check_weights,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None takes that of the program."""
    parser = argparse.ArgumentParser(description='Test (and evaluate) a detector')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions to a pickle file'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument(
        '--show-dir',
        help='draw the predictions into this folder below WORK_DIR/TIMESTAMP',
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds between images of --show'
    )
    parser.add_argument(
        '--tta', action='store_true', help='average over flips (test-time augmentation)'
    )
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out} does not end with .pkl or .pickle')
    return args


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Enter checkpoint, ``--show``, ``--show-dir`` and ``--tta`` into the config."""
    cfg.load_from, cfg.resume = args.checkpoint, False
    without_teacher(cfg)
    if args.show or args.show_dir:
        show_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        augment(cfg)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Test as the command line says; ends the program on bad input.

    Returns:
        What the evaluator measured.
    """
    args = parse_args(argv)
    process = process_number(args.launcher)
    with plain_errors(process):
        cfg = load_config(args)
        apply_flags(cfg, args)
        if process == 0:
            check_checkpoint(args.checkpoint, 'checkpoint')
            check_config(cfg, ('test',))
        setup_distributed(cfg, args.launcher)
        runner = build_runner(cfg)
        # in every process: they wait for one another when they fetch an address
        check_weights(runner.model, args.checkpoint, 'test')
        if args.out is not None:
            # first, so that predictions are not lost when another metric fails
            runner.test_evaluator.metrics.insert(0, DumpWhole(args.out))
        metrics = runner.test()
        leave_distributed()
        return metrics


if __name__ == '__main__':
    main()
