"""Measure what LFI costs, against the same detector without it, in one process.

The models take turns (twin, variant, variant, twin, ...), start each turn from the same
random state and have the same weights where both have them, so that all do the same
work. Told are the median, the quartiles, and the ratio to the twin in the same turn.
No file is downloaded: weights are random, unless --pretrained loads the teachers'.

A variant is the LFI config with a choice of where the targets come from, and changes:

  --variant feedback measure=parameters,flops,inference
  --variant no-feedback measure=inference model.backbone.feedback=False
  --variant cached targets=cached measure=train_step,train_memory
  --variant clip targets=online config=configs/lfi/OTHER.py measure=train_step
  --variant compiled targets=online compile=backbone.blocks
"""

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from terminaltables import AsciiTable

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.engine.command_line import ConfigOptions
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation import (
    MEASURES,
    TARGETS,
    Benchmark,
    Setting,
    Subject,
    Variant,
    build_subjects,
    run_info,
    write_json,
)
from lfi_mmdet.evaluation.demo_batch import NUM_BOXES, NUM_LABELS

#: Said in every report, for whoever reads the numbers later
NOTES = (
    'inference: one image, network without the post-processing of its detections',
    'train_step: data preprocessor, losses with teacher, gradients, update by the '
    "config's optimizer at learning rate 0, gradients freed",
    'memory: weights, optimizer state and teacher included, input images not; on a CPU '
    'as PyTorch allocates it, without what oneDNN keeps for itself',
    'ratio: to the twin in the same turn; low and high are quartiles',
)
#: Libraries of teachers, whose versions are told if they are there
TEACHER_LIBRARIES = ('open_clip_torch', 'mmpretrain', 'lmdb')


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('twin', metavar='TWIN_CONFIG', help='the detector without LFI')
    add('lfi', metavar='LFI_CONFIG', help='the same detector with LFI')
    add(
        '--variant',
        action='append',
        nargs='+',
        metavar=('NAME', 'KEY=VALUE'),
        help=f'what to compare with the twin; targets={"|".join(TARGETS)} (default: '
        'none), config=FILE (default: LFI_CONFIG), measure=A,B (default: --measure), '
        'compile=MODULE, and settings of the config; default: one variant "lfi"',
    )
    add(
        '--measure',
        nargs='+',
        choices=MEASURES,
        default=['parameters', 'flops', 'inference'],
        help='default: parameters flops inference',
    )
    add(
        '--shape',
        type=int,
        nargs=2,
        default=(640, 640),
        metavar=('H', 'W'),
        help='image in pixels, before padding; default: 640 640',
    )
    add('--batch-size', type=int, help='of training; default: 1 on a CPU, else 2')
    add(
        '--positives',
        type=int,
        default=0,
        metavar='N',
        help='in training, have so many proposals of each image lie on its objects, as '
        'those of a trained RPN do; default: 0, as those of an untrained one, which '
        'leaves the mask head little to do and makes LFI look dearer',
    )
    add('--repeat', type=int, default=10, help='timed turns; default: 10')
    add('--warmup', type=int, default=2, help='turns before; default: 2')
    add('--images', type=int, default=100, help='for measure=loader; default: 100')
    add(
        '--transform',
        default='LoadCachedTargets',
        help='whose share measure=loader tells; default: LoadCachedTargets',
    )
    add('--pretrained', action='store_true', help="load the teachers' weights")
    add(
        '--amp', action='store_true', help='train in mixed precision, as tools/train.py'
    )
    add('--compile', metavar='MODULE', help='torch.compile it in all models')
    add('--threads', type=int, help="CPU threads; default: PyTorch's choice")
    add('--device', choices=('cpu', 'cuda'), default=get_device())
    add('--seed', type=int, default=0)
    add('--out', type=Path, help='JSON file to write')
    add('--cfg-options', nargs='+', action=ConfigOptions, help='KEY=VALUE, for all')
    return parser


def read_variants(args: argparse.Namespace) -> list[Variant]:
    """The twin, with all measures of the others, and the variants.

    Raises:
        InputError: If one does not fit, or two have the same name.
    """
    variants = [
        Variant.parse(words, args.lfi, tuple(args.measure), args.compile)
        for words in args.variant or [['lfi']]
    ]
    wanted = {name for variant in variants for name in variant.measures}
    twin = Variant(
        name='twin',
        config=args.twin,
        measures=tuple(name for name in MEASURES if name in wanted),
        compile=args.compile,
    )
    names = [variant.name for variant in (twin, *variants)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'two variants have the name {name!r}')
    return [twin, *variants]


def number(value: float, unit: float = 1.0) -> str:
    """A number with four digits that count, or more before the point."""
    value /= unit
    return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def spread_text(spread: dict[str, Any], unit: float) -> str:
    """Median and quartiles."""
    low, high = number(spread['low'], unit), number(spread['high'], unit)
    return f'{number(spread["median"], unit)} ({low}-{high})'


def lines_of(result: dict[str, Any], twin: dict[str, Any]) -> list[list[str]]:
    """Title, value and comparison with the twin, for all that was measured."""
    lines = []
    if 'parameters' in result:
        mine, theirs = result['parameters'], twin['parameters']
        for title, key in (('parameters', 'total'), ('  exported', 'exported')):
            more = mine[key] / theirs['total'] - 1
            lines.append([f'{title}, M', f'{mine[key] / 1e6:.3f}', f'{more:+.2%}'])
    if 'flops' in result:
        mine, theirs = result['flops'], twin['flops']
        more = mine['total'] / theirs['total'] - 1
        lines.append(['GFLOPs', number(mine['total'], 1e9), f'{more:+.2%}'])
    for name, kind, unit, title in (
        ('inference', 'seconds', 1e-3, 'inference, ms'),
        ('inference_memory', 'bytes', 2**20, 'inference memory, MiB'),
        ('train_step', 'seconds', 1e-3, 'training step, ms'),
        ('train_memory', 'bytes', 2**20, 'training memory, MiB'),
    ):
        if name in result:
            ratio = result[name].get('ratio')
            compared = '' if ratio is None else 'x ' + spread_text(ratio, 1)
            lines.append([title, spread_text(result[name][kind], unit), compared])
    if 'checkpoint' in result:
        mine = result['checkpoint']
        lines.append(['checkpoint, MiB', number(mine['file'], 2**20), ''])
        lines.append(['  of the teacher, bytes', str(mine['teacher']), ''])
    if 'loader' in result:
        mine = result['loader']
        lines.append(['pipeline, ms per image', spread_text(mine['seconds'], 1e-3), ''])
        if mine['share'] is not None:
            lines.append([f'  {mine["transform"]}', f'{mine["share"]:.2%}', ''])
    return lines


def table(subjects: list[Subject], results: list[dict[str, Any]]) -> str:
    """One block of lines per model."""
    lines = [['', '', 'median (quartiles)', 'against the twin']]
    for subject, result in zip(subjects, results):
        rows = lines_of(result, results[0])
        if subject is subjects[0]:
            rows = [[title, value, ''] for title, value, _ in rows]
        names = [subject.variant.name, *[''] * len(rows)]
        lines += [[name, *row] for name, row in zip(names, rows)]
    return AsciiTable(lines).table


def remarks(subjects: list[Subject], results: list[dict[str, Any]]) -> list[str]:
    """What makes a comparison doubtful."""
    found = []
    for name in ('flops', 'inference', 'train_step'):
        works = {
            s.variant.name: r[name]['work']
            for s, r in zip(subjects, results)
            if name in r
        }
        if len({str(work) for work in works.values()}) > 1:
            found.append(f'{name}: the RoI heads did not do the same work: {works}.')
    return found


def report(
    args: argparse.Namespace, subjects: list[Subject], results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything that was measured, with what it takes to measure it again."""
    facts = run_info()
    versions = {}
    for name in TEACHER_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    facts['versions'].update(versions)
    facts.update(
        device=args.device,
        precision='mixed' if args.amp else 'as configured',
        seed=args.seed,
        shape=list(args.shape),
        batch_size=args.batch_size,
        objects_per_image=NUM_BOXES,
        classes_per_image=NUM_LABELS,
        positives=args.positives,
        repeat=args.repeat,
        warmup=args.warmup,
        pretrained=args.pretrained,
        cfg_options=args.cfg_options,
        notes=list(NOTES),
        remarks=remarks(subjects, results),
        models=[
            dict(subject.describe(), **result)
            for subject, result in zip(subjects, results)
        ],
    )
    return facts


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    least = dict(repeat=1, images=1, batch_size=1, threads=1, positives=0, warmup=0)
    for name, limit in least.items():
        value = getattr(args, name)
        if value is not None and value < limit:
            parser.error(f'--{name.replace("_", "-")} {value} is less than {limit}')
    if args.device != get_device():
        parser.error(
            f'--device {args.device}, but mixed precision is chosen for '
            f'{get_device()!r}; set CUDA_VISIBLE_DEVICES= to measure on the CPU'
            if args.device == 'cpu'
            else f'--device {args.device}: there is none'
        )
    if args.batch_size is None:
        args.batch_size = 1 if args.device == 'cpu' else 2
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    twin, *variants = read_variants(args)
    setting = Setting(
        shape=tuple(args.shape),
        batch_size=args.batch_size,
        positives=args.positives,
        device=args.device,
        seed=args.seed,
        amp=args.amp,
        pretrained=args.pretrained,
        options=args.cfg_options,
    )
    subjects = build_subjects(twin, variants, setting)
    benchmark = Benchmark(
        subjects, args.repeat, args.warmup, args.images, args.transform, progress=True
    )
    results = benchmark.run()
    print(table(subjects, results))
    uncounted = {str(r['flops']['uncounted']) for r in results if 'flops' in r}
    for operators in uncounted - {'{}'}:
        print(f'without a formula, hence not in the FLOPs: {operators}')
    for remark in remarks(subjects, results):
        print(remark)
    if args.out:
        write_json(report(args, subjects, results), args.out)
        print(f'written to {args.out}')
    return 0


if __name__ == '__main__':
    with plain_errors():
        raise SystemExit(main())
