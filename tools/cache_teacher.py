"""Run the teacher of a config once over a dataset and store its targets."""

import argparse

import torch

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.datasets.target_store import DTYPES
from lfi_mmdet.engine.caching import cache_targets, report_text
from lfi_mmdet.engine.caching_options import SPLITS, CachingOptions, default_folder
from lfi_mmdet.engine.command_line import ConfigOptions, read_config
from lfi_mmdet.engine.plain_errors import plain_errors


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='A command that was stopped or killed goes on where it was when it is '
        'given again, also with another number of processes.',
    )
    parser.add_argument('config', help='config with a teacher')
    parser.add_argument(
        '--out',
        help='folder of the store; default: the "store" that the config names, or '
        'work_dirs/<name of the config>/targets_<split>',
    )
    parser.add_argument('--split', choices=SPLITS, default='train')
    parser.add_argument(
        '--processes', type=int, default=1, help='on CUDA, each takes a device'
    )
    parser.add_argument(
        '--device',
        choices=('cuda', 'cpu'),
        default='cuda' if torch.cuda.is_available() else 'cpu',
    )
    parser.add_argument(
        '--batch-size', type=int, default=8, help='images per batch of each process'
    )
    parser.add_argument(
        '--workers',
        type=int,
        help='data loader workers of each process; default: 4 on CUDA, 0 on CPU',
    )
    parser.add_argument(
        '--dtype', choices=DTYPES, default='uint8', help='format of the maps'
    )
    parser.add_argument(
        '--texts',
        default='present',
        metavar='present|all|top:N',
        help='texts to keep of each image: those that teacher.present counts as '
        'present, all, or the best N',
    )
    parser.add_argument(
        '--features',
        action='store_true',
        help='keep features in place of the cosines between them (much larger; only '
        'for InteractionFeatureLoss)',
    )
    parser.add_argument(
        '--max-images', type=int, help='only the first images; default: all'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='key=value pairs'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    workers = args.workers
    if workers is None:
        workers = 4 if args.device == 'cuda' else 0
    options = CachingOptions(
        out=args.out or default_folder(cfg, args.split),
        split=args.split,
        processes=args.processes,
        device=args.device,
        batch_size=args.batch_size,
        workers=workers,
        dtype=args.dtype,
        texts=args.texts,
        features=args.features,
        max_images=args.max_images,
    )
    try:
        meta = cache_targets(cfg, options)
    except KeyboardInterrupt:
        raise SystemExit(
            f'stopped; what is in {options.out} is kept, and the same command goes on '
            'from there'
        ) from None
    print(report_text(meta, options.out))
    return 0


if __name__ == '__main__':
    with plain_errors():
        raise SystemExit(main())
