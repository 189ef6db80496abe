"""Digests that say whether two runs saw the same."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lfi_mmdet.engine.digest import file_digest


def value_digest(value: Any, replaced: Mapping[str, str] | None = None) -> str:
    """SHA-256 of plain values, whatever the order of the keys.

    Args:
        value: What JSON can hold; other types count by their text.
        replaced: Folders of this machine and what stands for them, so that the digest
            is the same on another machine.
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(neutral(text, replaced).encode()).hexdigest()


def neutral(text: str, replaced: Mapping[str, str] | None) -> str:
    """Put names in the place of the folders of this machine, the longest first."""
    for folder, name in sorted(
        (replaced or {}).items(), key=lambda item: -len(item[0])
    ):
        # whole names: /usr is no part of /home/usr, nor of /usr2; \n is no name
        whole = rf'(?:(?<![\w.-])|(?<=\\[nrt])){re.escape(folder)}(?![\w-])'
        text = re.sub(whole, name.replace('\\', r'\\'), text)
    return text


def named_files(value: Any, root: Path, inside: Path) -> dict[str, str]:
    """SHA-256 of the files that a config names, by their path below ``root``.

    A path says nothing of weights that were trained again in the same place. What a
    JSON file names beside itself is read along with it, e.g. a vocabulary.

    Args:
        value: Plain values.
        root: What relative paths are relative to.
        inside: Folder of the files that count; others are told apart by their paths, or
            are data, whose digests the results have.
    """
    inside, found = inside.resolve(), {}
    waiting = [(text, root) for text in _texts(value)]
    while waiting:
        text, base = waiting.pop()
        path = _file(base / text) if text and len(text) < 1000 else None
        if path is None or not path.is_relative_to(inside):
            continue
        name = str(path.relative_to(root.resolve()))
        if name in found:
            continue
        stat = path.stat()
        found[name] = _known_digest(path, stat.st_mtime_ns, stat.st_size)
        if path.suffix == '.json':
            beside = _texts(json.loads(path.read_text()))
            waiting += [(text, path.parent) for text in beside]
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for inner in value:
            yield from _texts(inner)


def _file(path: Path) -> Path | None:
    try:
        return path.resolve() if path.is_file() else None
    except (OSError, ValueError):  # a text that cannot be the name of a file
        return None


@functools.cache
def _known_digest(path: Path, changed: int, size: int) -> str:
    return file_digest(path)
