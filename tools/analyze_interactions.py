"""Measure and draw what the interaction queries look at, before and after training."""

import argparse
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from terminaltables import AsciiTable
from torch.utils.data import DataLoader
from tqdm import tqdm

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.engine.command_line import ConfigOptions, read_config
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.engine.preflight import check_checkpoint, check_weights
from lfi_mmdet.evaluation import (
    InteractionDivergence,
    interaction_dataloader,
    interaction_divergence,
    read_interactions,
    run_info,
    write_json,
)
from lfi_mmdet.evaluation.initialise import initialise_quietly
from lfi_mmdet.models.detectors import LFIMixin
from lfi_mmdet.visualization import MapRow, draw_detections, draw_interaction_maps
from lfi_mmdet.visualization.interaction_maps import map_rows


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config with a teacher')
    parser.add_argument('checkpoint', nargs='?', help='the trained detector')
    parser.add_argument(
        '--start-checkpoint',
        default='init',
        help='weights to compare with: a checkpoint, "init" (as before the first '
        'iteration, the default) or "none"',
    )
    parser.add_argument(
        '--out-dir', help='default: work_dirs/<name of the config>/interactions'
    )
    parser.add_argument(
        '--images', type=int, help='images for the numbers; default: all'
    )
    parser.add_argument(
        '--pictures', type=int, default=3, help='images to draw maps of; default: 3'
    )
    parser.add_argument(
        '--last-layer', action='store_true', help='draw only the last layer'
    )
    parser.add_argument(
        '--detections', type=int, default=0, help='images to draw detections of'
    )
    parser.add_argument('--split', choices=('val', 'train'), default='val')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='key=value pairs'
    )
    return parser


def load_student(model: torch.nn.Module, path: str) -> None:
    """Load a checkpoint, all of it but what belongs to the distiller.

    Raises:
        InputError: If it is missing, cannot be read, or is for another model.
    """
    check_checkpoint(path, 'checkpoint')
    distiller, model.distiller = model.distiller, None
    try:
        check_weights(model, path, 'test')
    finally:
        model.distiller = distiller


def pictures(
    model: LFIMixin, loader: DataLoader, images: int, last_only: bool
) -> list[MapRow]:
    """Rows of the first ``images`` images that show something."""
    rows: list[MapRow] = []
    more = () if model.teacher is None else model.teacher.more_texts
    names = [*loader.dataset.metainfo['classes'], *more]
    for batch in loader:
        found = map_rows(
            read_interactions(model, batch),
            model.data_preprocessor,
            names,
            last_only=last_only,
        )
        rows, images = rows + found, images - bool(found)
        if not images:
            break
    return rows


def add_before(rows: list[MapRow], before: list[MapRow]) -> None:
    """Put the last map before the training beside the teacher's."""
    for row, start in zip(rows, before, strict=True):
        panel = start.panels[-1]
        panel.title = panel.title.replace('student', 'before training')
        row.panels.insert(1, panel)


def table(results: dict[str, InteractionDivergence]) -> str:
    """One line per supervised layer."""

    def text(value: float | None) -> str:
        return '-' if value is None else f'{value:.3f}'

    names = list(results)
    last = results[names[-1]]
    lines = [
        ['block', 'teacher layer']
        + [f'KL {name}' for name in names]
        + (['start / trained'] if len(names) == 2 else [])
        + ['KL uniform']
        + [f'pointing {name}' for name in [*names, 'teacher']]
        + [f'mass inside {name}' for name in [*names, 'uniform', 'teacher']]
    ]
    for i, layer in enumerate(last.layers):
        each = [result.layers[i] for result in results.values()]
        kl = [one.kl for one in each]
        ratio = [text(kl[0] / kl[1]) if kl[1] else '-'] if len(kl) == 2 else []
        numbers = [*(one.pointing for one in each), layer.teacher_pointing]
        numbers += [*(one.mass_inside for one in each), last.area_inside]
        numbers += [layer.teacher_mass_inside]
        lines.append(
            [str(layer.layer), str(layer.teacher_layer)]
            + [text(value) for value in kl]
            + ratio
            + [text(value) for value in [layer.kl_uniform, *numbers]]
        )
    return AsciiTable(list(map(list, zip(*lines)))).table


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    if not cfg.model.get('teacher'):
        parser.error(
            f'{args.config}: model.teacher is None, so there is nothing to compare the '
            'queries with; choose a config with a teacher'
        )
    if args.start_checkpoint == 'none' and not args.checkpoint:
        parser.error('no CHECKPOINT, and --start-checkpoint none: nothing to measure')
    out = Path(args.out_dir or f'work_dirs/{Path(args.config).stem}/interactions')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    set_random_seed(args.seed)
    model = MODELS.build(cfg.model).to(args.device)
    workers = min(2, cfg.val_dataloader.get('num_workers', 0))
    loader = interaction_dataloader(
        cfg, args.split, args.images, batch_size=1, num_workers=workers
    )
    model.set_class_names(loader.dataset.metainfo['classes'])

    results: dict[str, InteractionDivergence] = {}
    drawn: dict[str, list[MapRow]] = {}
    for name, weights in (
        ('start', args.start_checkpoint),
        ('trained', args.checkpoint),
    ):
        if weights in (None, 'none'):
            continue
        if name == 'start' and weights == 'init':
            initialise_quietly(model)
        else:
            load_student(model, weights)
        results[name] = interaction_divergence(model, tqdm(loader, name, ncols=70))
        if args.pictures > 0:
            drawn[name] = pictures(model, loader, args.pictures, args.last_layer)

    report = run_info()
    report.update(
        config=args.config,
        cfg_options=args.cfg_options,
        checkpoint=args.checkpoint,
        start_checkpoint=args.start_checkpoint,
        teacher=type(model.teacher).__name__,
        teacher_sha256=model.teacher.weights_hash() if model.teacher.network else None,
        split=args.split,
        seed=args.seed,
        **{name: result.to_dict() for name, result in results.items()},
    )
    write_json(report, out / 'interactions.json')
    print(table(results))
    one = next(iter(results.values()))
    print(
        f'{one.num_images} images, {one.num_rows} rows, of which {one.num_mask_rows} '
        f'have a mask; written to {out / "interactions.json"}'
    )
    if args.pictures > 0:
        rows = list(drawn.values())[-1]
        if len(drawn) == 2:
            add_before(rows, drawn['start'])
        draw_interaction_maps(rows, out / 'interactions.png')
        print(f'maps drawn to {out / "interactions.png"}')
    if args.detections > 0:
        draw_detections(
            model,
            loader,
            loader.dataset.metainfo,
            out / 'detections.png',
            max_images=args.detections,
        )
        print(f'detections drawn to {out / "detections.png"}')
    return 0


if __name__ == '__main__':
    with plain_errors():
        raise SystemExit(main())
