"""What ran a study."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from .tasks import ROOT


def cpu_name() -> str:
    """Name of the processor, as Linux tells it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if 'model name' in line]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Processor and number of cores; no names of hosts."""
    return dict(cpu=cpu_name(), cores=os.cpu_count(), system=platform.system())


def commit() -> dict[str, Any]:
    """Commit of the code, and whether files differ from it; None without git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ['git', '-C', str(ROOT), *words],
                capture_output=True,
                text=True,
                timeout=30,
                # Ctrl-C must not leave an attempt without its commit
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git('status', '--porcelain', '--untracked-files=no')
    return dict(
        commit=git('rev-parse', 'HEAD'),
        dirty=None if changed is None else bool(changed),
    )
