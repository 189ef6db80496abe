"""Let ``torch.load`` read what mmengine writes.

Since torch 2.6 it refuses every class and function it was not told about, and an
mmengine checkpoint holds more than tensors: the log history (``HistoryBuffer`` of
numpy arrays), numpy scalars such as the best score, and dataset metainfo.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import digit_version

# Both store references to their own methods in a checkpoint.
_METHOD_OWNERS = (HistoryBuffer, OneCycleParamScheduler)


def _method_of(owner: type, name: str) -> Any:
    """Stand in for ``getattr``, by which pickle names a method.

    The real one would hand every attribute of every allowed object to a file.
    """
    if owner in _METHOD_OWNERS and name in vars(owner) and not name.startswith('__'):
        return getattr(owner, name)
    raise UnpicklingError(
        f'a checkpoint may name methods of {[c.__name__ for c in _METHOD_OWNERS]} '
        f'only, not {name!r} of {owner!r}'
    )


def _safe_globals() -> list[tuple[Callable, str]]:
    # As numpy itself names them in a pickle, in version 1 and 2
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    named: list[tuple[Callable, str]] = [(_method_of, 'builtins.getattr')]
    for package in ('numpy.core', 'numpy._core'):
        named.append((reconstruct, f'{package}.multiarray._reconstruct'))
        named.append((scalar, f'{package}.multiarray.scalar'))
    kinds = '?SU' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']
    dtypes = {type(np.dtype(kind)) for kind in kinds}
    # MAE's fine-tuned checkpoints keep their command line
    own = (*_METHOD_OWNERS, ConfigDict, argparse.Namespace)
    classes = (*own, np.ndarray, np.dtype, *dtypes)
    # Classes could go without their names. But onedl-mmengine adds some of them for
    # each load and takes them away again, which leaves named entries alone.
    return named + [(c, f'{c.__module__}.{c.__qualname__}') for c in classes]


def register_safe_globals() -> None:
    """Register what an mmengine checkpoint holds with ``torch.serialization``.

    Does nothing before torch 2.6, which loads such files without being told.
    """
    if digit_version(torch.__version__) >= digit_version('2.6.0'):
        torch.serialization.add_safe_globals([*_safe_globals()])


def load_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint into main memory, with one line on what is wrong with it.

    Args:
        path: File, or an address; then every process of a distributed run has to
            call this, as mmengine lets them wait for the one that fetches it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or is no checkpoint.
    """
    if '://' not in path and not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {path}: no such file')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except Exception as error:
        # what torch says ends in paragraphs about its own options
        reason = f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'
        if '://' in path:
            raise ValueError(
                f'checkpoint {path} cannot be fetched ({reason})'
            ) from error
        raise ValueError(
            f'checkpoint {path} cannot be read; it is truncated, damaged or no '
            f'checkpoint ({reason})'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of '
            'weights'
        )
    return checkpoint
