"""One plain message for what the user can mend, a traceback for everything else."""

from __future__ import annotations

import difflib
import linecache
import os
import re
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmdet.registry
import mmengine.registry
from mmengine.registry import Registry

import lfi_mmdet

from .preflight import InputError

_OURS = str(Path(lfi_mmdet.__file__).parent) + os.sep
_REGISTRY = str(Path(mmengine.registry.__file__).parent) + os.sep
_SIGNATURE = re.compile(r'unexpected keyword argument|missing \d+ required')
# seconds: on a busy machine the first process needs some to end
_PATIENCE = 20.0
_UNKNOWN = re.compile(r'(\S+) is not in the \S+::(.+?) registry')
_IMAGE = re.compile(r'failed to load image: (.+)')


def explain(error: BaseException) -> str | None:
    """Return what to tell the user about an error, or None if it is no known one.

    Known are the errors that this package raises on purpose, names and arguments in
    configs that the registries do not accept, and images that cannot be decoded, also
    when they were met by a worker process of a data loader.
    """
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    if isinstance(error, InputError):
        return text
    image = _IMAGE.findall(text)
    if isinstance(error, AssertionError) and image:
        return (
            f'{image[-1]} cannot be decoded as an image; replace it or take it out of '
            'the annotations'
        )
    if '!buf.empty()' in text:
        # OpenCV does not say which one
        return 'an image file is empty; `find IMAGE_FOLDER -size 0` names it'
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None
    path, line = frames[-1].filename, frames[-1].lineno or 0
    if path.startswith(_OURS) and linecache.getline(path, line).lstrip().startswith(
        'raise '
    ):
        return text
    if path.startswith(_REGISTRY) and isinstance(error, KeyError):
        return _unregistered(text)
    built = any(frame.filename.startswith(_REGISTRY) for frame in frames)
    if built and isinstance(error, TypeError) and _SIGNATURE.search(text):
        return text
    return None


def _unregistered(text: str) -> str:
    """Add the closest names to what mmengine says about an unknown one."""
    match = _UNKNOWN.match(text)
    if match is None:
        return text
    name, kind = match.groups()
    known: set[str] = set()
    for registry in vars(mmdet.registry).values():
        while isinstance(registry, Registry) and registry.name == kind:
            known |= registry.module_dict.keys()
            registry = registry.parent
    close = difflib.get_close_matches(name, sorted(known), 3)
    return (
        f'type={name!r} is not registered as a {kind}; '
        + (f'did you mean {" or ".join(map(repr, close))}? ' if close else '')
        + 'The module of an own class has to be named in custom_imports.'
    )


@contextmanager
def plain_errors(process: int = 0) -> Iterator[None]:
    """End the program with exit code 1 and one message on a known error.

    Args:
        process: Number of this process on its machine. Launchers stop all processes
            once one has ended, so all but the first wait for that before they speak:
            what every process meets is said once, and what only one of them meets (a
            broken image) is said all the same.
    """
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if process:
            time.sleep(_PATIENCE)
            message = f'{message} (said by process {process})'
        raise SystemExit(f'error: {message}') from None
