"""Write a dataset of shapes scenes in the COCO layout."""

import argparse
import os
import sys
from pathlib import Path

from lfi_mmdet.datasets.shapes import (
    SHAPE_CLASSES,
    STYLES,
    SceneConfig,
    choose_classes,
    contact_sheet,
    generate_dataset,
    write_png,
)


def class_choice(text: str) -> tuple[str, ...]:
    """Parse a number of classes or a comma-separated list of their names."""
    try:
        return choose_classes(int(text) if text.isdigit() else text.split(','))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    defaults = SceneConfig()
    parser.add_argument('out', type=Path, help='folder to make')
    parser.add_argument('--train', type=int, default=1000, help='labelled images')
    parser.add_argument('--val', type=int, default=200, help='evaluation images')
    parser.add_argument(
        '--unlabeled', type=int, default=2000, help='images with captions only'
    )
    parser.add_argument(
        '--size', type=int, default=defaults.size, help='side of the images in pixels'
    )
    parser.add_argument(
        '--classes',
        type=class_choice,
        default=str(len(defaults.class_names)),
        help='how many (8 to 16, in this order), or names joined by commas: '
        + ', '.join(SHAPE_CLASSES),
    )
    parser.add_argument(
        '--domain',
        choices=tuple(STYLES),
        default=defaults.domain,
        help='painting style',
    )
    parser.add_argument(
        '--clutter',
        type=float,
        default=defaults.clutter,
        help='how much distracts from the objects, 0 to 1',
    )
    parser.add_argument(
        '--unlabeled-domains',
        type=lambda text: text.split(','),
        default=[],
        help='styles, joined by commas, with which images without labels take turns '
        '(default: that of --domain)',
    )
    parser.add_argument(
        '--typical-colours',
        type=float,
        default=defaults.typical_colours,
        help='share of objects in the colour of their class, 0 to 1',
    )
    parser.add_argument(
        '--min-size',
        type=float,
        default=defaults.min_size,
        help='longest side of the smallest object, as a share of the image side',
    )
    parser.add_argument(
        '--max-size', type=float, default=defaults.max_size, help='of the largest one'
    )
    parser.add_argument(
        '--max-objects', type=int, default=defaults.max_objects, help='per scene'
    )
    parser.add_argument(
        '--captions', type=int, default=defaults.captions, help='captions per image'
    )
    parser.add_argument('--seed', type=int, default=0, help='same seed, same bytes')
    parser.add_argument('--workers', type=int, default=1, help='processes')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace another shapes dataset'
    )
    parser.add_argument(
        '--preview',
        type=int,
        default=0,
        metavar='N',
        help='also show the first N val scenes, outlined, in OUT/preview.png',
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.preview < 0:
        parser.error(f'argument --preview: {args.preview}; it must not be negative')
    try:
        config = SceneConfig(
            size=args.size,
            classes=args.classes,
            domain=args.domain,
            clutter=args.clutter,
            typical_colours=args.typical_colours,
            min_size=args.min_size,
            max_size=args.max_size,
            max_objects=args.max_objects,
            captions=args.captions,
        )
        made = generate_dataset(
            args.out,
            train=args.train,
            val=args.val,
            unlabeled=args.unlabeled,
            seed=args.seed,
            config=config,
            unlabeled_domains=args.unlabeled_domains,
            workers=args.workers,
            overwrite=args.overwrite,
            progress=True,
        )
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f'interrupted; {args.out} is as it was before', file=sys.stderr)
        return 130
    print(f'{args.out}: {"written" if made else "already there, the same dataset"}')
    if args.preview:
        aside = args.out / '.preview.png'
        write_png(aside, contact_sheet(args.seed, 'val', args.preview, config))
        os.replace(aside, args.out / 'preview.png')
        print(f'{args.out / "preview.png"}: the first {args.preview} val scenes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
