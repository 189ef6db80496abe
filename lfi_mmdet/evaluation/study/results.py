"""The results of a study: one JSON line per evaluation."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Results:
    """A file of JSON lines that several processes may extend.

    Every change replaces the whole file under a lock of the operating system. So a
    reader, or whoever comes after a process that was killed, finds all lines of a run
    or none, and the lock goes with the process that held it.

    Args:
        path: The file; missing ones are empty.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ends: tuple[tuple[int, int], dict[str, Line]] | None = None

    def read(self) -> list[Line]:
        """All lines that can be read.

        A line that was cut off, e.g. by a copy, is left out, and its run with it
        counts as not finished, since the last line of a run says that it is.
        """
        lines = []
        text = self.path.read_text() if self.path.is_file() else ''
        for row in text.splitlines():
            try:
                line = json.loads(row)
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def ends(self) -> dict[str, Line]:
        """The last line of every training that came to an end, by its id."""
        if not self.path.is_file():
            return {}
        stat = self.path.stat()
        state = stat.st_mtime_ns, stat.st_ino
        if self._ends is None or self._ends[0] != state:
            self._ends = state, ends(self.read())
        return self._ends[1]

    def replace(self, lines: Sequence[Line], drop: Callable[[Line], bool]) -> None:
        """Put lines in the place of others, at the end of the file.

        Args:
            lines: To add.
            drop: Says which of the present lines to leave out.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            kept = [line for line in self.read() if not drop(line)]
            rows = [json.dumps(line, allow_nan=False) for line in [*kept, *lines]]
            aside = self.path.with_name(f'.{self.path.name}.{os.getpid()}')
            try:
                with aside.open('w') as stream:
                    stream.write(''.join(f'{row}\n' for row in rows))
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(aside, self.path)
            finally:
                aside.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_name(f'.{self.path.name}.lock').open('w') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def ends(lines: Sequence[Line]) -> dict[str, Line]:
    """The last line of every training that came to an end, by its id."""
    return {
        line['id']: line
        for line in lines
        if line.get('final') and not line.get('superseded')
    }
