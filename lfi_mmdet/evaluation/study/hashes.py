"""Digests that say whether two runs saw the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def value_digest(value: Any, replaced: Mapping[str, str] | None = None) -> str:
    """SHA-256 of plain values, whatever the order of the keys.

    Args:
        value: What JSON can hold; other types count by their text.
        replaced: Folders of this machine and what stands for them, so that the digest
            is the same on another machine.
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(neutral(text, replaced).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def neutral(text: str, replaced: Mapping[str, str] | None) -> str:
    """Put names in the place of the folders of this machine, the longest first."""
    for folder, name in sorted(
        (replaced or {}).items(), key=lambda item: -len(item[0])
    ):
        text = text.replace(folder, name)
    return text
