"""Lets processes end with the one that started them, also if that one is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in prctl.h


def die_with_parent() -> None:
    """Have this process killed when its parent ends; does nothing but on Linux."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def children_die_with_parent() -> None:
    """The same for all processes that this one forks from now on.

    The workers of a data loader whose reader was killed wait for it forever.
    """
    os.register_at_fork(after_in_child=die_with_parent)
