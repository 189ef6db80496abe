"""The main job in minutes: Mask R-CNN with and without LFI on generated scenes.

Runs the tools a user would run, one after the other: make_shapes, train for the twin,
for LFI on scenes without labels and for LFI with labels (trainings of detectors end in
an evaluation), analyze_interactions, benchmark. Prints one table and writes it, with
the pictures and all logs, to the output folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mmengine.config import Config
from terminaltables import AsciiTable

ROOT = Path(__file__).resolve().parent.parent
TWIN = 'configs/lfi/mask-rcnn_vit-mini_shapes.py'
PRETRAIN = 'configs/lfi_pretrain/vit-mini_lfi_shapes.py'
#: Its architecture, from random weights
START = 'configs/lfi/mask-rcnn_vit-mini_lfi-coca_shapes.py'
LFI = 'configs/lfi/mask-rcnn_vit-mini_lfi-pretrained-joint_shapes.py'
NOTE = (
    'The teacher is a small CoCa that learned from captions of such scenes and '
    'saw no box, mask or label (configs/teachers/coca_shapes.pt). LFI first '
    'learns how it looks at 2,500 scenes without labels, then trains as long as '
    'the twin, on the same labels, with the teacher beside them and smaller steps '
    'the deeper a layer lies. One run of one seed; docs/results has the paired '
    'study.'
)
SIDE = 64
#: Like the scenes whose captions the teacher has read
SCENES = dict(
    size=SIDE, unlabeled=2500, max_objects=3, min_size=0.3, clutter=0.15,
    typical_colours=0.9,
)  # fmt: skip
#: Of every training
OPTIONS = [
    f'train_dataloader.dataset.pipeline.2.scale=({SIDE},{SIDE})',
    f'model.backbone.pretrain_img_size={SIDE}',
    'optim_wrapper.optimizer.lr=0.001',
    'randomness.seed=0',
]


class StepFailed(Exception):
    """A tool of the demo ended with an error."""


def run(title: str, log: Path, *command: str) -> None:
    """Run a tool; bars and warnings go to the terminal, everything else to ``log``.

    Raises:
        StepFailed: If the tool fails; its last lines are in the message.
    """
    print(f'\n== {title}\n   {" ".join(command)}', flush=True)
    start = time.monotonic()
    environment = dict(os.environ, PYTHONWARNINGS='ignore')
    with log.open('w') as stream:
        code = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=stream, env=environment
        ).returncode
    if code:
        tail = '\n'.join(log.read_text().splitlines()[-15:])
        raise StepFailed(f'{title} ended with {code}; the end of {log}:\n{tail}')
    print(f'   done in {time.monotonic() - start:.0f} s', flush=True)


def read_run(work_dir: Path) -> dict[str, float]:
    """Final metrics and the median time per iteration of the newest training.

    Args:
        work_dir: Work dir of ``tools/train.py``.
    """
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    times = [line['time'] for line in lines if 'loss' in line]
    metrics = next((line for line in reversed(lines) if 'coco/bbox_mAP' in line), None)
    if metrics is None:
        raise StepFailed(f'{newest}: no mAP, since nothing was detected at all')
    return dict(
        box_map=metrics['coco/bbox_mAP'],
        mask_map=metrics['coco/segm_mAP'],
        box_ap50=metrics['coco/bbox_mAP_50'],
        mask_ap50=metrics['coco/segm_mAP_50'],
        seconds_per_iter=statistics.median(times[1:] or times),
    )


def table(rows: dict[str, dict[str, float]]) -> str:
    """One line per run."""
    head = ['', 'box mAP', 'mask mAP', 'box AP50', 'mask AP50', 's/iter', 'parameters']
    lines = [head]
    for name, row in rows.items():
        ap = [row[k] for k in ('box_map', 'mask_map', 'box_ap50', 'mask_ap50')]
        lines.append(
            [name]
            + [f'{100 * value:.1f}' for value in ap]
            + [f'{row["seconds_per_iter"]:.2f}', f'{row["parameters"] / 1e6:.2f} M']
        )
    return AsciiTable(lines).table


def recipe() -> str:
    """Digest of all that is trained, and on what; results of another are not ours."""
    configs = {
        path: Config.fromfile(ROOT / path).to_dict()
        for path in (TWIN, PRETRAIN, START, LFI)
    }
    told = json.dumps([configs, OPTIONS, SCENES], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def length(iters: int | None) -> list[str]:
    """Options that make a training shorter or longer; none keeps the config's."""
    if not iters:
        return []
    # warm up over the same share as in the configs, anneal to the end
    warmup = max(iters // 8, 1)
    return [
        f'train_cfg.max_iters={iters}',
        f'train_cfg.val_interval={iters}',
        f'default_hooks.checkpoint.interval={iters}',
        f'param_scheduler.0.end={warmup}',
        f'param_scheduler.1.begin={warmup}',
        f'param_scheduler.1.end={iters}',
    ]


def checkpoint(work_dir: Path) -> str:
    """The last checkpoint of a training, as a tool is to be told it."""
    return of_root((work_dir / 'last_checkpoint').read_text().strip())


def of_root(path: Path | str) -> str:
    """A place as the tools see it, which run in the root of the checkout.

    Configs hold it, and are to name no place of this machine.
    """
    path = Path(path)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('demo_output'))
    parser.add_argument('--train', type=int, default=1600, help='labelled scenes')
    parser.add_argument('--val', type=int, default=150, help='scenes to evaluate on')
    parser.add_argument(
        '--iters', type=int, help="iterations; default: the config's, in minutes"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    args = build_parser().parse_args(argv)
    begin = time.monotonic()
    out = args.out.resolve()
    logs = out / 'logs'
    logs.mkdir(parents=True, exist_ok=True)
    data = of_root(out / 'scenes')
    common = [f'train_dataloader.dataset.data_root={data}/', *OPTIONS]
    # for tests too, which whoever takes the model later reads
    options = [*common]
    for part in ('val', 'test'):
        options += [
            f'{part}_dataloader.dataset.data_root={data}/',
            f'{part}_dataloader.dataset.pipeline.1.scale=({SIDE},{SIDE})',
            f'{part}_evaluator.ann_file={data}/annotations/instances_val.json',
        ]
    scenes = [f'--{k.replace("_", "-")}={value}' for k, value in SCENES.items()]

    def train(step: str, name: str, config: str, *given: str) -> None:
        shutil.rmtree(out / name, ignore_errors=True)
        run(
            f'{step} {Path(config).stem}', logs / f'{name}.log',
            'tools/train.py', config, '--work-dir', of_root(out / name),
            '--cfg-options', 'default_hooks.progress.type=ProgressBarHook', *given,
        )  # fmt: skip

    try:
        run(
            f'1/6 draw {args.train} + {args.val} scenes and {SCENES["unlabeled"]} '
            'without labels', logs / 'scenes.log',
            'tools/make_shapes.py', data, '--train', str(args.train),
            '--val', str(args.val), *scenes, '--workers', '2',
            '--overwrite', '--preview', '12',
        )  # fmt: skip
        schedule = length(args.iters)
        train('2/6 train and evaluate', 'twin', TWIN, *options, *schedule)
        captions = f'{data}/annotations/captions_unlabeled.json'
        train(
            '3/6 LFI without labels:', 'pretrain', PRETRAIN, *common, *schedule,
            f'train_dataloader.dataset.pipeline.1.ann_file={captions}',
        )  # fmt: skip
        train(
            '4/6 train and evaluate', 'lfi', LFI, *options, *schedule,
            f'model.backbone.init_cfg.checkpoint={checkpoint(out / "pretrain")}',
        )  # fmt: skip
        run(
            '5/6 look at the queries', logs / 'interactions.log',
            'tools/analyze_interactions.py', START, checkpoint(out / 'lfi'),
            '--out-dir', of_root(out), '--pictures', '3', '--detections', '4',
            '--cfg-options', *options,
        )  # fmt: skip
        costs = out / 'costs.json'
        run(
            '6/6 count parameters', logs / 'costs.log',
            'tools/benchmark.py', TWIN, START, '--measure', 'parameters',
            '--shape', str(SIDE), str(SIDE), '--out', of_root(costs),
        )  # fmt: skip
        models = json.loads(costs.read_text())['models']
        rows = {
            title: dict(read_run(out / name), parameters=model['parameters']['total'])
            for title, name, model in zip(('twin', 'LFI'), ('twin', 'lfi'), models)
        }
    except StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    report = json.loads((out / 'interactions.json').read_text())
    facts = {key: report[key] for key in ('versions', 'gpu', 'cpu_threads', 'seed')}
    starts, ends = report['start']['layers'], report['trained']['layers']
    last_start, last = starts[-1], ends[-1]
    summary = dict(
        command='make demo',
        rows=rows,
        divergence=dict(
            start=last_start['kl'],
            trained=last['kl'],
            uniform=last['kl_uniform'],
            all_layers=[
                dict(block=a['layer'], start=a['kl'], trained=b['kl'])
                for a, b in zip(starts, ends, strict=True)
            ],
        ),
        note=NOTE,
        recipe=recipe(),
        minutes=(time.monotonic() - begin) / 60,
        **facts,
    )
    (out / 'demo.json').write_text(json.dumps(summary, indent=2) + '\n')
    print(f'\n{table(rows)}\n\n{NOTE}\n')
    print(
        'Divergence between what queries and teacher look at, last layer, validation '
        f'images: {last_start["kl"]:.2f} at the start, {last["kl"]:.2f} after training '
        f'(nats; looking everywhere alike: {last["kl_uniform"]:.2f})\n'
    )
    for picture, text in (
        ('interactions.png', 'what the queries look at'),
        ('detections.png', 'what LFI detects'),
        ('scenes/preview.png', 'the scenes'),
    ):
        print(f'{text}: {out / picture}')
    print(f'logs: {logs}\nall in {summary["minutes"]:.1f} minutes')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
