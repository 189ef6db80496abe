"""Write measured numbers into the documents, from the JSON of the runs.

The text between ``<!-- NAME:start -->`` and ``<!-- NAME:end -->`` is replaced by what
a file in ``docs/results`` says; ``--check`` only compares.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from lfi_mmdet.evaluation.gate_tables import doses, gate, gates
from lfi_mmdet.evaluation.provenance import machine, shown_command, study_source
from lfi_mmdet.evaluation.study.tables import arms_table, bars_table, selection_table

ROOT = Path(__file__).resolve().parent.parent


def demo(result: dict) -> str:
    """The table that ``make demo`` prints."""
    lines = [
        '| | box mAP | mask mAP | box AP50 | mask AP50 | s/iter | parameters |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, row in result['rows'].items():
        ap = [row[k] for k in ('box_map', 'mask_map', 'box_ap50', 'mask_ap50')]
        cells = [name, *(f'{100 * value:.1f}' for value in ap)]
        cells += [f'{row["seconds_per_iter"]:.2f}', f'{row["parameters"] / 1e6:.2f} M']
        lines.append('| ' + ' | '.join(cells) + ' |')
    change = result['divergence']
    layers = ', '.join(
        f'{layer["block"]}: {layer["start"]:.2f} -> {layer["trained"]:.2f}'
        for layer in change['all_layers']
    )
    return '\n'.join(
        [
            *lines,
            '',
            f'{result["note"]} Divergence between what queries and teacher look at, '
            f'last layer, validation scenes: {change["start"]:.2f} nats at the start, '
            f'{change["trained"]:.2f} after training (looking everywhere alike: '
            f'{change["uniform"]:.2f}); in blocks {layers}. `{result["command"]}`, '
            f'{result["minutes"]:.1f} minutes on {machine(result)}.',
        ]
    )


#: A cell of the table of costs, and whether the bar is met; None where there is none
Cell = tuple[str, bool | None]


def added_parameters(models: dict, name: str, key: str, most: float) -> Cell:
    """Parameters that a variant has more than its twin, as a share of the twin's."""
    mine, twin = models[name]['parameters'], models['twin']['parameters']
    more = mine[key] - twin['total']
    share = more / twin['total']
    text = f'{share:+.1%} ({more / 1e6:.2f} M on {twin["total"] / 1e6:.1f} M)'
    return text if more else 'none', share <= most


def ratio(
    models: dict, name: str, measure: str, most: float | None, noise: bool = False
) -> Cell:
    """Median and quartiles of the ratio to the twin in the same turn.

    Within noise of ``most`` is what has it between its quartiles, or above them.
    """
    mine, twin = models[name][measure], models['twin'][measure]
    pair = mine['ratio']
    text = f'{pair["median"]:.3f}x ({pair["low"]:.3f}-{pair["high"]:.3f})'
    for kind, unit, title in (('seconds', 1e-3, 'ms'), ('bytes', 2**20, 'MiB')):
        if kind in mine:
            ours, theirs = (side[kind]['median'] / unit for side in (mine, twin))
            text += f'; {ours:.0f} {title}, twin {theirs:.0f} {title}'
    if most is None:
        return text, None
    return text, pair['low' if noise else 'median'] <= most


def more_flops(models: dict, name: str) -> Cell:
    """Arithmetic of inference."""
    mine, twin = (models[key]['flops']['total'] for key in (name, 'twin'))
    text = f'{mine / twin - 1:+.1%}; {mine / 1e9:.1f} GFLOPs, twin {twin / 1e9:.1f}'
    return text, None


def share_of_loader(models: dict, name: str, below: float) -> Cell:
    """Share of a transform in a worker's time per image."""
    loader = models[name]['loader']
    spread, seconds = loader['shares'], loader['seconds']['median']
    text = (
        f'{loader["share"]:.1%} ({spread["low"]:.1%}-{spread["high"]:.1%}) of '
        f'{1e3 * seconds:.0f} ms, {loader["images"]} images'
    )
    return text, loader['share'] < below


def teacher_in_checkpoint(models: dict, names: tuple[str, ...]) -> Cell:
    """Bytes of checkpoints that belong to no part of the student."""
    found = {name: models[name]['checkpoint']['teacher'] for name in names}
    most = max(found.values())
    return f'{most} bytes ({", ".join(found)})', most == 0


def cost_rows(models: dict) -> list[tuple[str, str, Callable[[], Cell]]]:
    """What is measured, its bar, and how it is read off the models of a result."""

    def step(name: str, most: float) -> Callable[[], Cell]:
        def read() -> Cell:
            text, met = ratio(models, name, 'train_step', most)
            teacher = models[name]['teacher']
            return f'{text}; {teacher["type"]} {teacher.get("model", "")}'.strip(), met

        return read

    feedback, apart = 'feedback', 'no-feedback'
    teachers = tuple(n for n in models if n != 'twin' and 'checkpoint' in models[n])
    return [
        (
            'parameters added at inference, with feedback',
            'at most 3%',
            lambda: added_parameters(models, feedback, 'total', 0.03),
        ),
        (
            'the same without feedback, exported',
            '0',
            lambda: added_parameters(models, apart, 'exported', 0),
        ),
        (
            'inference latency, with feedback',
            'at most 1.04x',
            lambda: ratio(models, feedback, 'inference', 1.04),
        ),
        (
            'the same without feedback',
            '1.00x within noise',
            lambda: ratio(models, apart, 'inference', 1.0, noise=True),
        ),
        (
            'arithmetic of inference, with feedback',
            '',
            lambda: more_flops(models, feedback),
        ),
        (
            'inference memory, with feedback',
            '',
            lambda: ratio(models, feedback, 'inference_memory', None),
        ),
        ('training step, cached targets', 'at most 1.12x', step('cached', 1.12)),
        (
            'training memory, cached targets',
            'at most 1.10x',
            lambda: ratio(models, 'cached', 'train_memory', 1.1),
        ),
        ('training step, online CLIP ViT-B/16', 'at most 1.15x', step('clip', 1.15)),
        (
            'training step, online CoCa ViT-L/14, texts present only',
            'at most 1.5x',
            step('coca', 1.5),
        ),
        (
            "reading and warping cached targets, of a loader worker's time",
            'under 5%',
            lambda: share_of_loader(models, 'cached', 0.05),
        ),
        (
            'teacher in a saved checkpoint',
            '0 bytes',
            lambda: teacher_in_checkpoint(models, teachers),
        ),
    ]


def costs(result: dict) -> str:
    """What LFI costs, against its twin; variants are known by their names."""
    models = {model['name']: model for model in result['models']}
    lines = [
        '| what | bar | measured (median, quartiles) | met? |',
        '|---|---|---|---|',
    ]
    for title, bar, read in cost_rows(models):
        try:
            text, met = read()
        except (KeyError, ValueError, TypeError):
            text, met = 'not measured', None
        verdict = {True: 'yes', False: '**no**', None: '-'}[met]
        lines.append(f'| {title} | {bar or "-"} | {text} | {verdict} |')
    height, width = result['shape']
    command = 'python tools/' + shlex.join(result['command'])
    setting = (
        f'Images of {height}x{width} pixels; inference with batch 1, without '
        f'post-processing; training with batch {result["batch_size"]}, '
        f'{result["objects_per_image"]} objects of {result["classes_per_image"]} '
        f'classes in an image, and {result["positives"] or "no"} more proposals on '
        f'them; {result["repeat"]} turns.'
    )
    return '\n'.join(
        [*lines, '', ' '.join([setting, *result['remarks']])]
        + [f'`{command}`, {machine(result)}.']
    )


def variants(result: dict) -> str:
    """What LFI costs in a detector for which no bars were set, by variant."""
    models = {model['name']: model for model in result['models']}
    twin = models.pop('twin')
    names = ('inference', 'train_step', 'train_memory')
    lines = [
        '| variant | parameters | inference | training step | training memory |',
        '|---|---|---|---|---|',
        '| twin | '
        + ' | '.join(
            [
                f'{twin["parameters"]["total"] / 1e6:.1f} M',
                f'{1e3 * twin["inference"]["seconds"]["median"]:.0f} ms',
                f'{1e3 * twin["train_step"]["seconds"]["median"]:.0f} ms',
                f'{twin["train_memory"]["bytes"]["median"] / 2**20:.0f} MiB',
            ]
        )
        + ' |',
    ]
    for name, model in models.items():
        cells = [name, '-']
        if 'parameters' in model:
            base = twin['parameters']['total']
            more, kept = (
                (model['parameters'][key] - base) / 1e6 for key in ('total', 'exported')
            )
            cells[1] = f'+{more:.2f} M; exported +{kept:.2f} M'
        for measure in names:
            pair = model.get(measure, {}).get('ratio')
            cells.append(
                f'{pair["median"]:.3f}x ({pair["low"]:.3f}-{pair["high"]:.3f})'
                if pair
                else '-'
            )
        lines.append('| ' + ' | '.join(cells) + ' |')
    height, width = result['shape']
    command = 'python tools/' + shlex.join(result['command'])
    return '\n'.join(
        [
            *lines,
            '',
            f'Images of {height}x{width} pixels, {result["repeat"]} turns; '
            f'`{command}`, {machine(result)}.',
        ]
    )


def study(report: dict) -> str:
    """What a study asked, what it found, and the command that repeats it."""
    lines = [bars_table(report['bars'])] if report['bars'] else []
    for setting in report['settings'].values():
        tests = [test for test in setting['tests'] if test != 'val']
        lines.append(f'**{setting["title"]}**, {setting["iterations"]} iterations:')
        lines.append(arms_table(setting, 'val'))
        for test in tests:
            lines += [f'The same, evaluated on {test}:', arms_table(setting, test)]
        if setting['selection']:
            lines.append('Chosen on these runs, which count for nothing else:')
            lines.append(selection_table(setting['selection']))
    lines.append(study_source(report))
    return '\n\n'.join(lines)


def main_table(report: dict) -> str:
    """The bars of a study alone."""
    runs = report['runs']
    return (
        f'{bars_table(report["bars"])}\n\n'
        f'mAP in points, mean of n paired seeds, 95% intervals by bootstrap and by '
        f"Student's t. {runs['finished']} of {runs['planned']} runs finished; "
        f'`{shown_command(report["commands"][0])}` on '
        f'{"; ".join(report["provenance"]["machines"])}.'
    )


def published(records: dict[str, dict]) -> str:
    """What is in ``configs/lfi/published``, and what it reaches."""
    lines = [
        '| model | weights, config, log | MiB | box mAP | mask mAP |',
        '|---|---|---|---|---|',
    ]
    runs = []
    for name, record in records.items():
        scores = record['metrics']
        cells = [
            f'`{name}`',
            f'[weights](published/{record["file"]}), [config](published/{name}.py), '
            f'[log](published/{name}.log.json)',
            f'{record["bytes"] / 2**20:.1f}',
            *(f'{100 * scores[f"coco/{kind}_mAP"]:.1f}' for kind in ('bbox', 'segm')),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
        versions = ', '.join(
            f'{key} {value}' for key, value in record['versions'].items()
        )
        runs.append(
            f'- `{name}`: `{record["command"]}`, {record["iter"]} iterations, '
            f'{record["machine"]["cpu"]}; {versions}.'
        )
    return '\n'.join([*lines, '', *runs])


#: Name of a block, the file it is made of, or a pattern for several, and how
Blocks = dict[str, tuple[str, Callable[[dict], str]]]

#: The documents and their blocks
DOCUMENTS: dict[str, Blocks] = {
    'README.md': dict(
        demo=('demo.json', demo),
        costs=('benchmark.json', costs),
        confirm=('confirm/report.json', main_table),
        domains=('domains/report.json', main_table),
        controls=('controls/report.json', main_table),
    ),
    'docs/results/README.md': dict(
        gate=('teacher/teacher.json', gate),
        gates=('teacher/domains/*.json', gates),
        confirm=('confirm/report.json', study),
        scenes=('scenes/report.json', study),
        domains=('domains/report.json', study),
        controls=('controls/report.json', study),
        ablations=('ablations/report.json', study),
        doses=('doses/*.json', doses),
        photos=('photos/report.json', study),
    ),
    'docs/any_detector.md': dict(costs=('benchmark_r50.json', variants)),
    'configs/lfi/README.md': dict(
        published=('../../configs/lfi/published/*_shapes.json', published),
    ),
}

#: The tools that measure
HOW = dict(
    demo='tools/demo.py',
    costs='tools/benchmark.py',
    gate='tools/check_teacher.py',
    gates='tools/check_teacher.py',
    doses='tools/report.py and tools/check_teacher.py',
    published='tools/publish_model.py',
)


def fill(text: str, folder: Path, document: str = 'README.md') -> str:
    """Replace all blocks of ``text``.

    Args:
        text: Markdown with start and end marks.
        folder: Where the JSON files are.
        document: One of :data:`DOCUMENTS`.

    Raises:
        ValueError: If a block has no marks.
        FileNotFoundError: If nothing was measured yet.
    """
    for name, (source, write) in DOCUMENTS[document].items():
        found = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob(source))}
        if not found:
            how = HOW.get(name, 'tools/report.py')
            path = folder / source
            raise FileNotFoundError(f'{path}: measure first, see {how} --help')
        content = write(found if '*' in source else next(iter(found.values())))
        start, end = f'<!-- {name}:start -->', f'<!-- {name}:end -->'
        pattern = re.compile(re.escape(start) + '.*?' + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f'{document} has no block {start} ... {end}')
        block = f'{start}\n{content}\n{end}'
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='change nothing')
    args = parser.parse_args(argv)
    differs = []
    for document in DOCUMENTS:
        path = ROOT / document
        old = path.read_text()
        new = fill(old, ROOT / 'docs' / 'results', document)
        if old != new:
            differs.append(document)
            if not args.check:
                path.write_text(new)
    if args.check and differs:
        print(
            f'{", ".join(differs)} differ from docs/results; run this without --check'
        )
    return int(args.check and bool(differs))


if __name__ == '__main__':
    sys.exit(main())
