"""Compare the costs of detectors: parameters, arithmetic, time, memory.

The models are built from their configs without a teacher, as they are deployed, and
with random weights; no file is downloaded. The first one is what the others are
compared with.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from terminaltables import AsciiTable
from tqdm import tqdm

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.engine.command_line import ConfigOptions, read_config
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.evaluation import (
    DemoBatch,
    count_flops,
    count_parameters,
    run_info,
    time_in_turns,
    write_json,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(800, 1333),
        metavar=('H', 'W'),
        help='image in pixels, before padding; default: 800 1333',
    )
    parser.add_argument(
        '--repeat', type=int, default=10, help='timed runs; default: 10'
    )
    parser.add_argument('--warmup', type=int, default=2, help='runs before; default: 2')
    parser.add_argument(
        '--train-step', action='store_true', help='also time losses and gradients'
    )
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='key=value, for all configs',
    )
    return parser


def build(path: str, args: argparse.Namespace) -> torch.nn.Module:
    """Build a detector without its teacher, with random weights."""
    cfg = read_config(path, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if 'teacher' in cfg.model:
        cfg.model.teacher = None
    set_random_seed(args.seed)
    return MODELS.build(cfg.model).to(args.device)


def measure(
    models: list[torch.nn.Module], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All measurements, one dict per model."""
    batches = [DemoBatch(model, tuple(args.shape)) for model in models]
    results = []
    for batch in tqdm(batches, 'counting', ncols=70):
        flops = asdict(count_flops(batch.model, batch.forward))
        parameters = count_parameters(batch.model)
        results.append(
            dict(parameters=parameters, flops=flops, proposals=batch.proposals)
        )
    todo = {'inference': [batch.forward for batch in batches]}
    if args.train_step:
        todo['train_step'] = [batch.train_step for batch in batches]
    for name, runs in todo.items():
        timings = time_in_turns(
            list(zip(models, runs)), args.repeat, args.warmup, progress=name
        )
        for result, timing in zip(results, timings):
            result[name] = timing.to_dict()
    return results


#: Lines of the table: title, path into the result of a model, unit
LINES = (
    ('parameters, M', ('parameters', 'total'), 1e6),
    ('  backbone', ('parameters', 'backbone'), 1e6),
    ('  interaction', ('parameters', 'interaction'), 1e6),
    ('GFLOPs (multiply-add = 2)', ('flops', 'total'), 1e9),
    ('  backbone', ('flops', 'backbone'), 1e9),
    ('  interaction', ('flops', 'interaction'), 1e9),
    ('proposals', ('proposals',), 1),
    ('inference, ms (median)', ('inference', 'median_s'), 1e-3),
    ('  interquartile range', ('inference', 'spread_s'), 1e-3),
    ('  peak CUDA memory, MiB', ('inference', 'peak_memory'), 2**20),
    ('train step, ms (median)', ('train_step', 'median_s'), 1e-3),
    ('  interquartile range', ('train_step', 'spread_s'), 1e-3),
    ('  peak CUDA memory, MiB', ('train_step', 'peak_memory'), 2**20),
)


def look_up(result: dict[str, Any], path: tuple[str, ...]) -> float | None:
    """Value at a path; None where something was not measured."""
    value: Any = result
    for key in path:
        value = (value or {}).get(key)
    return value


def difference(value: float | None, first: float | None) -> float | None:
    """Percent from ``first`` to ``value``; None if there is no saying."""
    return 100 * (value / first - 1) if value is not None and first else None


def table(names: list[str], results: list[dict[str, Any]]) -> str:
    """Lines of numbers, a column per model, differences from the first."""
    lines = [['', *names, *(f'{name} vs. {names[0]}' for name in names[1:])]]
    for title, path, unit in LINES:
        values = [look_up(result, path) for result in results]
        if all(value is None for value in values):
            continue
        differences = [difference(value, values[0]) for value in values[1:]]
        if 'interquartile' in title:
            differences = [None] * len(differences)
        lines.append(
            [title]
            + ['-' if v is None else f'{v / unit:.7g}' for v in values]
            + ['-' if d is None else f'{d:+.2f}%' for d in differences]
        )
    return AsciiTable(lines).table


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.repeat < 1:
        parser.error(f'--repeat {args.repeat} is less than 1')
    models = [build(path, args) for path in args.configs]
    results = measure(models, args)
    names = [Path(path).stem for path in args.configs]
    print(table(names, results))
    for name, result in zip(names, results):
        uncounted = result['flops']['uncounted']
        if uncounted:
            print(f'{name}: without a formula, hence not in the FLOPs: {uncounted}')
    if args.out:
        report = run_info()
        report.update(
            device=args.device,
            seed=args.seed,
            shape=list(args.shape),
            repeat=args.repeat,
            warmup=args.warmup,
            cfg_options=args.cfg_options,
            models=[
                dict(config=path, **result)
                for path, result in zip(args.configs, results)
            ],
        )
        write_json(report, args.out)
        print(f'written to {args.out}')
    return 0


if __name__ == '__main__':
    with plain_errors():
        raise SystemExit(main())
