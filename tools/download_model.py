"""Fetch published weights by the name of their model, and verify them.

An attempt that was cut off goes on where it stopped. Without a name, lists the models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lfi_mmdet.engine.model_zoo import ZooModel, fetch, find_model, read_index
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.shipped import shipped_root


def config_of(model: ZooModel) -> Path:
    """The config that a model was trained by, or ours of its name."""
    assert model.weights is not None
    beside = (shipped_root() / model.weights).parent / f'{model.name}.py'
    return beside if beside.is_file() else shipped_root() / model.config


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Run the command line; ends the program on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', nargs='?', help='e.g. mask-rcnn_vit-s_lfi_coco')
    parser.add_argument('--out', default='checkpoints', help='folder; %(default)s')
    args = parser.parse_args(argv)
    with plain_errors():
        models = read_index()
        if args.name is None:
            for model in sorted(models.values(), key=lambda model: not model.weights):
                print(f'{model.name}: {model.weights or "no weights published"}')
            return None
        model = find_model(args.name, models)
        path = fetch(model, args.out)
    print(f'{path}: verified\n{config_of(model)}: its config')
    return path


if __name__ == '__main__':
    main()
