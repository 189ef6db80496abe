"""Write measured numbers into README.md, from the JSON of the runs.

The text between ``<!-- NAME:start -->`` and ``<!-- NAME:end -->`` is replaced by what
``docs/results/NAME.json`` says; ``--check`` only compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def machine(result: dict) -> str:
    """Where and with what a result was measured."""
    where = result['gpu'] or f'CPU, {result["cpu_threads"]} threads'
    versions = result['versions']
    names = ('torch', 'mmengine', 'mmcv', 'mmdet')
    return (
        f'{where}; Python {versions["python"]}, '
        + ', '.join(f'{name} {versions[name]}' for name in names)
        + f'; seed {result["seed"]}'
    )


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


def costs(result: dict) -> str:
    """Parameters, FLOPs and inference time of a twin and its LFI model."""
    twin, lfi = result['models']
    rows = [
        ('parameters', ('parameters', 'total'), 1e6, 'M'),
        ('GFLOPs', ('flops', 'total'), 1e9, ''),
        ('inference, median', ('inference', 'median_s'), 1e-3, 'ms'),
    ]
    lines = ['| | twin | LFI | difference |', '|---|---|---|---|']
    for title, (group, key), unit, name in rows:
        a, b = twin[group][key], lfi[group][key]
        cells = [
            f'{side[group][key] / unit:.1f} {name}'.strip()
            + (
                f' (IQR {side[group]["spread_s"] / unit:.0f})'
                if 'spread_s' in side[group]
                else ''
            )
            for side in (twin, lfi)
        ]
        lines.append(f'| {title} | {" | ".join(cells)} | {100 * (b / a - 1):+.1f}% |')
    command = 'python tools/' + ' '.join(result['command'])
    return '\n'.join([*lines, '', f'`{command}`, {machine(result)}.'])


BLOCKS: dict[str, Callable[[dict], str]] = dict(demo=demo, costs=costs)


def fill(text: str, folder: Path) -> str:
    """Replace all blocks of ``text``.

    Args:
        text: Markdown with start and end marks.
        folder: Where the JSON files are.

    Raises:
        ValueError: If a block has no marks.
    """
    for name, write in BLOCKS.items():
        content = write(json.loads((folder / f'{name}.json').read_text()))
        start, end = f'<!-- {name}:start -->', f'<!-- {name}:end -->'
        pattern = re.compile(re.escape(start) + '.*?' + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f'README.md has no block {start} ... {end}')
        block = f'{start}\n{content}\n{end}'
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='change nothing')
    args = parser.parse_args(argv)
    readme = ROOT / 'README.md'
    old = readme.read_text()
    new = fill(old, ROOT / 'docs' / 'results')
    if args.check:
        if old != new:
            print('README.md differs from docs/results; run tools/update_readme.py')
        return int(old != new)
    readme.write_text(new)
    return 0


if __name__ == '__main__':
    sys.exit(main())
