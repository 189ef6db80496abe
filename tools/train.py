"""Train a detector, with the flags of MMDetection's tools/train.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.logging import print_log

from lfi_mmdet.engine.amp import choose_precision
from lfi_mmdet.engine.command_line import (
    add_common_arguments,
    build_runner,
    is_first_process,
    load_config,
)
from lfi_mmdet.engine.distributed import setup_distributed
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.engine.preflight import (
    InputError,
    check_config,
    check_start,
    check_weights,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None takes that of the program."""
    parser = argparse.ArgumentParser(description='Train a detector')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train with automatic mixed precision; in bfloat16 on the CPU',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the real batch size over '
        'auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint, or without one from the latest in the work '
        'dir, if there is any',
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Enter ``--auto-scale-lr`` and ``--resume`` into the config."""
    if args.auto_scale_lr:
        scale = cfg.get('auto_scale_lr') or {}
        if 'enable' not in scale or 'base_batch_size' not in scale:
            raise InputError(
                f'--auto-scale-lr: auto_scale_lr={scale or None} in {args.config}; it '
                'needs dict(enable=False, base_batch_size=...)'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says; ends the program on bad input."""
    args = parse_args(argv)
    first = is_first_process(args.launcher)
    with plain_errors(quiet=not first):
        cfg = load_config(args)
        apply_flags(cfg, args)
        precision = choose_precision(cfg, args.amp)
        if first:
            check_start(cfg)
            check_config(cfg, ('train', 'val'))
        setup_distributed(cfg, args.launcher)
        runner = build_runner(cfg)
        if precision is not None:
            print_log(precision, logger='current')
        if first and cfg.get('load_from'):
            purpose = 'resume' if cfg.get('resume') else 'start'
            check_weights(runner.model, cfg.load_from, purpose)
        runner.train()


if __name__ == '__main__':
    main()
