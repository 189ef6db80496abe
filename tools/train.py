"""Train a detector, with the flags of MMDetection's tools/train.py."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint

from lfi_mmdet.compat.checkpoints import load_checkpoint
from lfi_mmdet.engine.amp import choose_precision
from lfi_mmdet.engine.command_line import (
    add_common_arguments,
    build_runner,
    load_config,
    process_number,
)
from lfi_mmdet.engine.distributed import leave_distributed, setup_distributed
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
    if args.resume == 'auto':
        # without a checkpoint to go on from, what load_from says is still the start
        if find_latest_checkpoint(cfg.work_dir) or not cfg.get('load_from'):
            cfg.resume, cfg.load_from = True, None
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume


def start_checkpoint(cfg: Config) -> str | None:
    """What the training starts from: ``load_from``, or the latest to resume."""
    if cfg.get('load_from') or not cfg.get('resume'):
        return cfg.get('load_from')
    return find_latest_checkpoint(cfg.work_dir)


def keep_seed(cfg: Config) -> None:
    """Take over the seed of the run to resume, if the config sets none.

    mmengine takes it over as well, but only after the sampler got a new one, and the
    resumed run would see the images in another order.
    """
    checkpoint = start_checkpoint(cfg) if cfg.get('resume') else None
    randomness = cfg.get('randomness') or {}
    if not checkpoint or randomness.get('seed') is not None:
        return
    if '://' in checkpoint:
        print_log(
            f'the seed of {checkpoint} is not known yet: the images come in another '
            'order than without the interruption; --cfg-options randomness.seed=... '
            'sets it',
            logger='current',
            level=logging.WARNING,
        )
        return
    meta = load_checkpoint(checkpoint).get('meta') or {}
    if meta.get('seed') is not None:
        cfg.randomness = dict(randomness, seed=meta['seed'])


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says; ends the program on bad input."""
    args = parse_args(argv)
    process = process_number(args.launcher)
    with plain_errors(process):
        cfg = load_config(args)
        apply_flags(cfg, args)
        precision = choose_precision(cfg, args.amp)
        if process == 0:
            check_start(cfg)
            check_config(cfg, ('train', 'val'))
        keep_seed(cfg)
        setup_distributed(cfg, args.launcher)
        runner = build_runner(cfg)
        if precision is not None:
            print_log(precision, logger='current')
        checkpoint = start_checkpoint(cfg)
        if checkpoint:
            # in every process: they wait for one another when they fetch an address
            purpose = 'resume' if cfg.get('resume') else 'start'
            check_weights(runner.model, checkpoint, purpose)
        runner.train()
        leave_distributed()


if __name__ == '__main__':
    main()
