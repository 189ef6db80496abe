"""Write the student alone, to be deployed: weights, and a config beside them.

Teacher, distiller and the state of the training are left out. Without feedback the
queries are as well: the weights are then those of the plain detector, and predict the
same to the bit. With feedback (the default) the queries stay.
"""

import argparse
from collections.abc import Sequence

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.engine.command_line import ConfigOptions, read_config
from lfi_mmdet.engine.export import Export, export_student
from lfi_mmdet.engine.plain_errors import plain_errors


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='checkpoint of a training')
    parser.add_argument(
        'out', help='checkpoint to write; the config gets the same name with .py'
    )
    parser.add_argument(
        '--config', help='config of the training; default: the one in the checkpoint'
    )
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='averaged weights of EMAHook, an error if there are none; with --no-ema '
        'the last ones; default: those that tools/test.py takes, which are the '
        'averaged ones if there are any',
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='key=value pairs; needs --config',
    )
    return parser


def report_text(export: Export) -> str:
    """What was written, for people."""
    queries = (
        'with its queries, since feedback is on'
        if export.queries
        else 'without queries, which change no prediction'
    )
    dropped = ', '.join(
        f'{number / 1e6:.3f} M of {part}' for part, number in export.dropped.items()
    )
    lines = [
        f'{export.model}, {queries}; '
        f'{"averaged" if export.averaged else "last"} weights',
        f'kept {export.kept / 1e6:.3f} M numbers; left out {dropped or "none"}',
        f'{export.weights}: {export.size / 2**20:.1f} MiB; the checkpoint has '
        f'{export.source_size / 2**20:.1f} MiB',
        f'{export.config}: its config',
    ]
    if not export.has_classes:
        lines.append(
            'the checkpoint does not name its classes: mmdet.apis will take those of '
            'COCO'
        )
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> Export:
    """Run the command line; ends the program on bad input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.cfg_options and not args.config:
        parser.error('--cfg-options needs --config')
    with plain_errors():
        cfg = read_config(args.config, args.cfg_options) if args.config else None
        export = export_student(args.checkpoint, args.out, cfg, args.ema, args.force)
    print(report_text(export))
    return export


if __name__ == '__main__':
    main()
