"""Measure how good the maps of a teacher are, and which of them to distil.

Run it on a dataset with masks before a teacher costs GPU days. It needs no checkpoint
and no training: only the teacher of the config is built, once per reading.
"""

import argparse
import textwrap
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from terminaltables import AsciiTable
from tqdm import tqdm

import lfi_mmdet  # noqa: F401  before mmdet: it may have to provide mmcv's ops
from lfi_mmdet.datasets.target_store.teacher_config import inner_teacher
from lfi_mmdet.engine.command_line import ConfigOptions, read_config
from lfi_mmdet.engine.plain_errors import plain_errors
from lfi_mmdet.evaluation import interaction_dataloader, run_info, write_json
from lfi_mmdet.evaluation.recommendation import (
    RULE,
    Recommendation,
    config_lines,
    recommend,
)
from lfi_mmdet.evaluation.teacher_quality import (
    Estimate,
    LayerQuality,
    TeacherQuality,
)
from lfi_mmdet.evaluation.teacher_trial import (
    TeacherTrial,
    accepted_arguments,
    check_masks,
    readings_of,
    teacher_class,
    trial_config,
)
from lfi_mmdet.visualization import draw_interaction_maps
from lfi_mmdet.visualization.teacher_maps import TeacherPictures


def layer_choice(text: str) -> str | list[int]:
    """Parse ``all`` or indices joined by commas."""
    try:
        return text if text == 'all' else [int(word) for word in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither "all" nor a list such as 3,5,-1'
        ) from None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config with a teacher')
    parser.add_argument(
        '--readings', nargs='+', help='default: all that the teacher has'
    )
    parser.add_argument(
        '--layers',
        type=layer_choice,
        default='all',
        help='"all" (the default) or indices joined by commas',
    )
    parser.add_argument(
        '--heads',
        choices=('keep', 'mean'),
        help='judge the heads of a layer one by one or their mean, where the teacher '
        'can tell them apart; default: as in the config',
    )
    parser.add_argument(
        '--member', type=int, help='of several teachers at once, the one to check'
    )
    parser.add_argument('--split', choices=('val', 'train'), default='val')
    parser.add_argument(
        '--images', type=int, default=500, help='the first images; default: 500'
    )
    parser.add_argument(
        '--batch-size', type=int, help='default: that of val_dataloader'
    )
    parser.add_argument(
        '--out-dir', help='default: work_dirs/<name of the config>/teacher'
    )
    parser.add_argument(
        '--pictures',
        type=int,
        default=0,
        metavar='N',
        help='draw the best layer of each reading for the first N images with objects',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='key=value pairs'
    )
    return parser


def choose_teacher(
    cfg: Config, member: int | None, parser: argparse.ArgumentParser
) -> tuple[dict, str]:
    """Config of the teacher to check, and where its arguments stand.

    Of stored targets it is the teacher they are of. Ends the program if there is none.
    """
    teacher = cfg.model.get('teacher')
    if not teacher:
        parser.error(
            f'{cfg.filename}: model.teacher is None, so there is nothing to check; '
            'choose a config with a teacher'
        )
    cached = 'CachedTeacher' in str(teacher.get('type'))
    place = f'model = dict(teacher={"dict(teacher=" * cached}dict({{}}){")" * cached})'
    teacher = inner_teacher(teacher)
    if member is None:
        return teacher, place
    teachers = teacher.get('teachers', [])
    if not 0 <= member < len(teachers):
        parser.error(
            f'--member {member}: model.teacher has {len(teachers)} teachers'
            + (f', 0 to {len(teachers) - 1}' if teachers else '; leave out --member')
        )
    return teachers[member], f'model.teacher.teachers[{member}]: dict({{}})'


def table(qualities: list[LayerQuality], found: Recommendation) -> str:
    """One line per reading and layer; a star marks those recommended."""

    def share(estimate: Estimate | None, chance: bool = True) -> str:
        if estimate is None:
            return '-'
        beside = f' ({estimate.chance:.2f})' if chance else ''
        return f'{estimate.value:.2f}{beside}'

    def ranged(estimate: Estimate | None) -> str:
        if estimate is None or estimate.low is None:
            return share(estimate, chance=False)
        return f'{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]'

    def pointing(quality: LayerQuality) -> str:
        one, most = quality.pointing, quality.most
        return '-' if one is None else f'{one.value:.2f} ({one.chance:.2f}, {most:.2f})'

    lines = [
        ['', 'reading', 'layer', 'pointing (chance, most)', '2+ classes (chance)']
        + ['specific pointing', 'inside (area)', 'others (area)']
        + ['specificity (chance)', 'presence AUC', 'score AUC']
    ]
    for quality in qualities:
        chosen = quality.reading == found.reading and quality.layer in found.layers
        mark = '*' if chosen else ''
        lines.append(
            [mark, quality.reading, quality.layer]
            + [pointing(quality), share(quality.pointing_multi)]
            + [ranged(quality.specific_pointing)]
            + [share(quality.inside_named), share(quality.inside_others)]
            + [share(quality.specificity)]
            + [share(quality.presence_auc, False), share(quality.score_auc, False)]
        )
    return AsciiTable(lines).table


def best_columns(
    qualities: list[LayerQuality], metric: str
) -> list[tuple[str, int, str]]:
    """The best layer of each reading, for the picture."""
    columns = []
    for reading in dict.fromkeys(quality.reading for quality in qualities):
        layers = [quality for quality in qualities if quality.reading == reading]
        index = max(range(len(layers)), key=lambda i: getattr(layers[i], metric).value)
        title = f'{reading},\nlayer {layers[index].layer}'
        columns.append((reading, index, title))
    return columns


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    chosen, place = choose_teacher(cfg, args.member, parser)
    cls = teacher_class(chosen)
    trials = {
        reading: trial_config(chosen, reading, args.layers, args.heads)
        for reading in args.readings or readings_of(cls)
    }
    set_random_seed(args.seed)
    out = Path(args.out_dir or f'work_dirs/{Path(args.config).stem}/teacher')
    workers = min(2, cfg.val_dataloader.get('num_workers', 0))
    loader = interaction_dataloader(
        cfg, args.split, args.images, args.batch_size, workers
    )
    check_masks(loader.dataset, args.images)
    classes = loader.dataset.metainfo['classes']

    pictures = TeacherPictures(args.pictures)
    qualities: list[LayerQuality] = []
    weights = None
    for reading, trial_cfg in trials.items():
        trial = TeacherTrial(cfg, trial_cfg, classes, args.device)
        quality = TeacherQuality(reading, trial.teacher.layer_names, len(classes))
        for batch in trial.run(tqdm(loader, reading, ncols=70)):
            quality.add(batch.targets, batch.data_samples)
            pictures.add(reading, batch, trial.preprocessor)
        qualities += quality.result()
        weights = trial.teacher.weights_hash()
    found = recommend(qualities)

    report = run_info()
    report.update(
        config=args.config,
        cfg_options=args.cfg_options,
        teacher=cls.__name__,
        teacher_sha256=weights,
        member=args.member,
        split=args.split,
        seed=args.seed,
        num_images=quality.num_images,
        layers=[one.to_dict() for one in qualities],
        rule=RULE,
        recommendation=found.to_dict(),
    )
    write_json(report, out / 'teacher.json')
    print(table(qualities, found))
    print(
        f'{quality.num_images} images; in brackets behind a value, what a map that '
        'looks everywhere alike would get, and the most\nthat the grid allows, where '
        'objects are small; in square ones, 95% intervals over images'
    )
    if chosen.get('texts') == 'captions':
        print('note: asked about class prompts, not about words of captions')
    print(textwrap.fill(RULE, 88))
    for warning in found.warnings:
        print(f'warning: {warning}')
    if found.reading is not None:
        print(f'\nbest: {found.reading}, layer {found.best}; to distil it:\n')
        print(config_lines(found, accepted_arguments(cls), place) + '\n')
    print(f'written to {out / "teacher.json"}')
    if pictures.pictures:
        rows = pictures.rows(best_columns(qualities, found.metric), classes)
        draw_interaction_maps(rows, out / 'teacher.png')
        print(f'maps drawn to {out / "teacher.png"}')
    return 0


if __name__ == '__main__':
    with plain_errors():
        raise SystemExit(main())
