"""Write a detector as one file of one graph: ONNX (.onnx) or torch.export (.pt2).

The file takes pixels and gives boxes, scores, labels and masks; docs/deploy.md says in
which form. It is compared with the detector itself on images before it is put in place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.engine.command_line import ConfigOptions, read_config
from lfi_mmdet.engine.deploy import FORMATS, Deployment, deploy
from lfi_mmdet.engine.plain_errors import plain_errors


def main(argv: Sequence[str] | None = None) -> Deployment:
    """Run the command line; ends the program on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config', help='config of a training, or of an exported student'
    )
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument(
        'out', type=Path, help=f'file to write; its suffix is {" or ".join(FORMATS)}'
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the image that the file takes; default: what the test pipeline '
        'resizes to, with padding',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        default=[],
        help='to compare on; default: noise, in which a detector may find nothing',
    )
    parser.add_argument(
        '--max-candidates',
        type=int,
        help='pairs of box and class that reach the NMS of a second stage; default: '
        '4096, or 32768 if score_thr is below 0.01; of SOLOv2, pairs of place and '
        'class that get a mask, 1000',
    )
    parser.add_argument('--force', action='store_true', help='replace a file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='key=value pairs'
    )
    args = parser.parse_args(argv)
    with plain_errors():
        cfg = read_config(args.config, args.cfg_options)
        told = deploy(
            cfg,
            args.checkpoint,
            args.out,
            args.shape,
            args.images,
            args.force,
            args.max_candidates,
        )
    print(f'{told.file}: {told.file.stat().st_size / 2**20:.1f} MiB')
    for image, agreement in told.agreements.items():
        print(f'{image}: {agreement.text()}')
    if not told.compared:
        print(
            'NOT COMPARED: the detector finds nothing in it, so that nothing could be '
            'compared; --images with objects that it knows'
        )
    return told


if __name__ == '__main__':
    main()
