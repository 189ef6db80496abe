"""Cut CLIP's vocabulary down to the words of some captions.

CLIP's text tower knows 49,408 tokens. A small model that reads generated captions
needs a hundred, and two tables of 49,408 rows would be most of its weights. The merges
that make the words are kept, in CLIP's own order; anything else is still read, letter
by letter.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lfi_mmdet.datasets.caption_scenes import CaptionScenes
from lfi_mmdet.datasets.shapes import STYLES, SceneConfig


def needed_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Find the merges of CLIP's vocabulary that make ``words``, in its order."""
    from open_clip.tokenizer import SimpleTokenizer, get_pairs

    ranks, used = SimpleTokenizer().bpe_ranks, set()
    for word in sorted(words):
        parts = (*word[:-1], word[-1] + '</w>')
        while len(parts) > 1:
            pair = min(get_pairs(parts), key=lambda p: ranks.get(p, len(ranks)))
            if pair not in ranks:
                break
            used.add(pair)
            parts = _merged(parts, pair)
    return sorted(used, key=ranks.__getitem__)


def _merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out, i = [], 0
    while i < len(parts):
        if parts[i : i + 2] == pair:
            out.append(''.join(pair))
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return tuple(out)


def caption_vocabulary(scenes: int, classes: int) -> set[str]:
    """Words of the captions of so many scenes, of all domains, in lower case."""
    # colours and textures come at random: many small scenes show all of them
    stream = CaptionScenes(
        scenes, split='vocabulary', domains=tuple(STYLES), size=48, classes=classes
    )
    words = {w for i in range(scenes) for w in _words(stream[i]['caption'])}
    return words | {
        w for name in SceneConfig(classes=classes).class_names for w in _words(name)
    }


def _words(text: str) -> list[str]:
    return re.findall('[a-z]+', text.lower())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='file to write, .txt.gz')
    parser.add_argument('--scenes', type=int, default=5000, help='captions to read')
    parser.add_argument('--classes', type=int, default=16, help='shape classes')
    parser.add_argument(
        '--words', nargs='*', default=[], help='further words, e.g. of prompts'
    )
    args = parser.parse_args(argv)
    words = caption_vocabulary(args.scenes, args.classes)
    words |= {word for text in args.words for word in _words(text)}
    merges = needed_merges(words)
    lines = ['#version: 0.2', *(' '.join(merge) for merge in merges)]
    aside = args.out.with_name(f'.{args.out.name}')
    # no time stamp: the same words give the same bytes
    aside.write_bytes(gzip.compress('\n'.join(lines).encode(), mtime=0))
    os.replace(aside, args.out)
    print(
        f'{args.out}: {len(words)} words, {len(merges)} merges; '
        f'vocab_size={512 + len(merges) + 2}'
    )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
