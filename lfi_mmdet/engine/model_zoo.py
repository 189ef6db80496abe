"""Finds published models in the index and fetches their weights."""

from __future__ import annotations

import difflib
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from tqdm import tqdm

from lfi_mmdet.shipped import shipped_root

from .digest import file_digest
from .preflight import InputError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ZooModel:
    """One entry of the index.

    Attributes:
        name: Of the model.
        config: Its config, relative to the root.
        weights: Address of its weights, or a path relative to the root; None if it has
            not been trained.
        sha256: Their digest.
    """

    name: str
    config: str
    weights: str | None
    sha256: str | None


def read_index(root: Path | None = None) -> dict[str, ZooModel]:
    """The models of ``model-index.yml`` and the files it imports, by name.

    Args:
        root: The folder of the index; None for ours.

    Raises:
        InputError: If a file is missing or is no index, or weights have no digest.
    """
    root = shipped_root() if root is None else root
    index = root / 'model-index.yml'
    models = {}
    for name in _read(index).get('Import', []):
        for entry in _read(root / name).get('Models', []):
            weights = entry.get('Weights')
            sha256 = entry.get('Metadata', {}).get('SHA256')
            if weights is not None and (
                not isinstance(sha256, str) or len(sha256) != 64
            ):
                raise InputError(
                    f'{name}: {entry["Name"]} has weights, but Metadata.SHA256='
                    f'{sha256!r} is no digest to verify them by'
                )
            models[entry['Name']] = ZooModel(
                entry['Name'], entry['Config'], weights, sha256
            )
    return models


def _read(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    except yaml.YAMLError as error:
        raise InputError(f'{path} is no YAML: {error}') from error
    if not isinstance(content, dict):
        raise InputError(f'{path} is no model index')
    return content


def find_model(name: str, models: dict[str, ZooModel]) -> ZooModel:
    """An entry that has weights.

    Raises:
        InputError: If there is none of this name, or it has no weights.
    """
    trained = sorted(model.name for model in models.values() if model.weights)
    if name not in models:
        close = difflib.get_close_matches(name, models, 3, 0.5)
        hint = f'; did you mean {" or ".join(close)}?' if close else ''
        raise InputError(
            f'no model {name!r} in the index{hint}; there are weights of: '
            f'{", ".join(trained) or "none yet"}'
        )
    if models[name].weights is None:
        raise InputError(
            f'no weights of {name} are published; of these there are: '
            f'{", ".join(trained) or "none yet"}'
        )
    return models[name]


def fetch(model: ZooModel, folder: str | Path, root: Path | None = None) -> Path:
    """Fetch the weights of a model, and verify them.

    What has been fetched so far stays in a ``.part`` file, from which the next attempt
    goes on. Weights that are there already are verified and kept.

    Args:
        model: With weights.
        folder: Where to put them.
        root: What a relative ``weights`` is relative to; None for our root.

    Returns:
        The file.

    Raises:
        InputError: If they cannot be fetched, or are not those of the index.
    """
    assert model.weights is not None and model.sha256 is not None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / model.weights.rpartition('/')[2]
    if path.exists():
        _verify(path, model, 'delete it, and try again')
        return path
    part = path.with_name(f'{path.name}.part')
    if '://' not in model.weights:
        source = (shipped_root() if root is None else root) / model.weights
        if not source.is_file():
            raise InputError(f'{model.name}: there is no {source}')
        shutil.copyfile(source, part)
    else:
        _download(model, part, path)
    try:
        _verify(part, model, 'nothing of it is kept; try again')
    except InputError:
        part.unlink()
        raise
    os.replace(part, path)
    return path


def _download(model: ZooModel, part: Path, path: Path) -> None:
    assert model.weights is not None
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(model.weights)
    if start:
        request.add_header('Range', f'bytes={start}-')
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            going_on = start and answer.status == 206
            length = answer.headers.get('Content-Length')
            total = int(length) + (start if going_on else 0) if length else None
            done = start if going_on else 0
            with (
                part.open('ab' if going_on else 'wb') as file,
                tqdm(
                    total=total, initial=done, unit='B', unit_scale=True, desc=path.name
                ) as bar,
            ):
                while block := answer.read(_BLOCK):
                    file.write(block)
                    done += len(block)
                    bar.update(len(block))
        if total is not None and done < total:
            raise OSError(f'the connection ended after {done} of {total} bytes')
    except urllib.error.HTTPError as error:
        if error.code == 416:  # all of it is there already
            return
        raise InputError(f'{model.weights}: {error}') from error
    except OSError as error:
        raise InputError(
            f'{model.weights} cannot be fetched: {error}. Try again, to go on where it '
            f'stopped; or fetch it elsewhere and put it at {path} (sha256 '
            f'{model.sha256})'
        ) from error


def _verify(path: Path, model: ZooModel, advice: str) -> None:
    digest = file_digest(path)
    if digest != model.sha256:
        raise InputError(
            f'{path} has the sha256 {digest}, but that of {model.name} is '
            f'{model.sha256}; {advice}'
        )
