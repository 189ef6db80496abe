"""Tells files apart by what is in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 20


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, which is never in memory as a whole."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
