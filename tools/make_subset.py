"""Write a small COCO annotation file out of a larger one, e.g. to memorise it.

Keeps the images that hold most instances of the wanted classes and sizes, and of those
images only such instances. The photos stay where they are.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path


def subset(
    annotations: dict, classes: list[str], num_images: int, min_area: float
) -> dict:
    """Choose images and instances.

    Args:
        annotations: Content of a COCO instance file.
        classes: Names of the categories to keep.
        num_images: Images to keep; those with the largest covered area come first.
        min_area: Smallest instance to keep, in pixels.

    Raises:
        ValueError: If a class is unknown or too few images qualify.
    """
    ids = {category['name']: category['id'] for category in annotations['categories']}
    unknown = [name for name in classes if name not in ids]
    if unknown:
        raise ValueError(f'--classes {unknown}: choose from {sorted(ids)}')
    wanted = {ids[name] for name in classes}
    # an image with smaller or crowded instances of these classes would teach that
    # they are background
    spoilt = {
        a['image_id']
        for a in annotations['annotations']
        if a['category_id'] in wanted and (a['iscrowd'] or a['area'] < min_area)
    }
    kept: dict[int, list[dict]] = {}
    for a in annotations['annotations']:
        if a['category_id'] in wanted and a['image_id'] not in spoilt:
            kept.setdefault(a['image_id'], []).append(a)
    order = sorted(kept, key=lambda i: (-sum(a['area'] for a in kept[i]), i))
    if len(order) < num_images:
        raise ValueError(
            f'--images {num_images}: only {len(order)} images hold {classes} of at '
            f'least {min_area:g} pixels and none that is smaller'
        )
    chosen = set(order[:num_images])
    return dict(
        annotations,
        images=[image for image in annotations['images'] if image['id'] in chosen],
        annotations=[a for image_id in sorted(chosen) for a in kept[image_id]],
        categories=[c for c in annotations['categories'] if c['id'] in wanted],
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('annotations', type=Path, help='COCO instance file')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--classes', nargs='+', required=True, metavar='NAME')
    parser.add_argument('--images', type=int, default=16)
    parser.add_argument('--min-area', type=float, default=32**2, help='pixels')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        content = json.loads(args.annotations.read_text())
        chosen = subset(content, args.classes, args.images, args.min_area)
    except OSError as error:
        parser.error(f'{args.annotations}: {error.strerror}')
    except (ValueError, KeyError) as error:
        parser.error(f'{args.annotations}: {error}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    aside = args.out.with_name(f'.{args.out.name}.{os.getpid()}')
    aside.write_text(json.dumps(chosen))
    os.replace(aside, args.out)
    print(
        f'{args.out}: {len(chosen["images"])} images, '
        f'{len(chosen["annotations"])} instances of {", ".join(args.classes)}'
    )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
