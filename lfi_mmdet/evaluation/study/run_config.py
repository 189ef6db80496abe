"""Makes the config of one training of a study."""

from __future__ import annotations

import copy
import functools
import pprint
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from lfi_mmdet.engine.command_line import read_config
from lfi_mmdet.engine.preflight import InputError

from .datasets import EvaluationSet, SettingData

#: What the harness decides, and what of the study file decides it
RESERVED = {
    'work_dir': '--work-dir',
    'randomness.seed': 'seeds',
    'train_cfg.max_iters': 'iterations',
    'train_cfg.val_interval': 'val_interval',
    'default_hooks.checkpoint.interval': 'val_interval',
}


@functools.cache
def _read(path: str) -> Config:
    return read_config(path)


def load(path: str, options: Sequence[Mapping[str, Any]]) -> Config:
    """Read a config without its options, as a copy that may be changed.

    Args:
        path: Config file.
        options: Only checked: none may be what the harness decides.

    Raises:
        InputError: If the config cannot be read, or an option is reserved.
    """
    for group in options:
        for key in group:
            if key in RESERVED:
                raise InputError(
                    f'options.{key}: the harness sets it from {RESERVED[key]}'
                )
    return copy.deepcopy(_read(path))


def relocate(
    cfg: Config, data: SettingData, labels: Path, root: str | None = None
) -> None:
    """Point a config at the data of a setting, wherever it names its own.

    Every text that begins with the config's ``data_root`` is changed, in nested
    datasets and evaluators as well; so is every text that is the annotation file of
    the training images, which becomes the drawn labels.

    Args:
        cfg: Changed in place.
        data: Of the setting.
        labels: Annotation file of the labelled images.
        root: The root to replace; None for ``cfg.data_root``.

    Raises:
        InputError: If the config has no ``data_root`` and none is given.
    """
    old = root or cfg.get('data_root')
    if not isinstance(old, str):
        raise InputError(
            f'config {cfg.filename} has no data_root; name the root that its datasets '
            'have in the setting, key root'
        )
    old = old.rstrip('/')
    trains = (data.train_file, f'{old}/{data.train_file}')

    def change(text: str) -> str:
        if text in trains:
            return str(labels)
        if text.rstrip('/') == old or text.startswith(f'{old}/'):
            return f'{data.folder}/{text[len(old) :].lstrip("/")}'
        return text

    _replace_dict(cfg, _walk(cfg._cfg_dict.to_dict(), change))


def apply(cfg: Config, options: Mapping[str, Any], where: str) -> None:
    """Merge options, as ``--cfg-options`` does.

    YAML has no tuples: a list that takes the place of a tuple becomes one.

    Raises:
        InputError: If one does not fit.
    """
    try:
        typed = {
            key: _typed(value, _present(cfg, key)) for key, value in options.items()
        }
        cfg.merge_from_dict(copy.deepcopy(typed))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'{where}: {dict(options)} do not fit {cfg.filename}: {error}'
        ) from error


def set_length(cfg: Config, iterations: int, interval: int) -> None:
    """Train for so many iterations, with the learning-rate schedule scaled to them.

    A config that counts epochs becomes one that counts iterations.

    Args:
        cfg: Changed in place.
        iterations: Of the whole training.
        interval: Iterations between two evaluations, and between two checkpoints.
    """
    given = cfg.get('train_cfg') or {}
    length = given.get('max_iters') or given.get('max_epochs')
    in_epochs = not given.get('max_iters')
    for scheduler in _as_list(cfg.get('param_scheduler')):
        by_epoch = scheduler.get('by_epoch', True)
        # a warm-up in iterations of a config in epochs cannot be scaled, only cut
        scales = length is not None and by_epoch == in_epochs
        factor = iterations / length if length is not None and scales else 1.0
        limit = iterations if scales else max(iterations // 8, 1)
        for key in ('begin', 'end', 'T_max', 'milestones', 'step_size'):
            if key in scheduler:
                scheduler[key] = _scaled(scheduler[key], factor, limit)
        if 'end' in scheduler:  # of a very short training
            scheduler['end'] = max(scheduler['end'], scheduler.get('begin', 0) + 1)
        scheduler['by_epoch'] = False
        scheduler.pop('convert_to_iter_based', None)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=iterations, val_interval=interval
    )
    hooks = cfg.default_hooks
    hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=2
    )
    hooks.logger = dict(hooks.get('logger') or {}, type='LoggerHook')
    hooks.logger.log_metric_by_epoch = False
    cfg.log_processor = dict(cfg.get('log_processor') or {}, by_epoch=False)


def place_validation(cfg: Config, data: SettingData) -> None:
    """Evaluate on the validation set of the setting, whatever the config names.

    Raises:
        InputError: If it has no single data set that could be pointed there.
    """
    if not cfg.get('val_dataloader') or not cfg.get('val_evaluator'):
        raise InputError(
            f'config {cfg.filename} has no val_dataloader or no val_evaluator; a run '
            'of a study is evaluated'
        )
    cfg.val_dataloader, cfg.val_evaluator = _evaluated_on(cfg, data.val)


def test_sets(cfg: Config, tests: Mapping[str, EvaluationSet]) -> dict[str, dict]:
    """Data loader and evaluator of each test set, made from those of the validation."""
    sets = {}
    for name, place in tests.items():
        loader, evaluator = _evaluated_on(cfg, place)
        loader['persistent_workers'] = False
        sets[name] = dict(dataloader=loader, evaluator=evaluator)
    return sets


def check_placed(cfg: Config, data: SettingData, labels: Path, where: str) -> None:
    """Check that a finished config reads the files of its setting.

    The digests in the results are those of the drawn labels and of the setting's own
    set to evaluate on.

    Only texts that are known can be replaced: a config that names another file than
    the setting would silently learn from that one.

    Args:
        cfg: With all options.
        data: Of the setting.
        labels: Annotation file of the labelled images.
        where: Key of the setting, for messages.

    Raises:
        InputError: If it names other files.
    """
    found = [_file_of(dataset) for dataset in _leaves(cfg.train_dataloader['dataset'])]
    if labels.resolve() not in found:
        named = ', '.join(map(str, found)) or 'no annotation file'
        raise InputError(
            f'{where}: labelled images are those of {data.train_file} (key '
            f'train.ann_file), but train_dataloader of {cfg.filename} names {named}, '
            f'and no dataset of it the drawn labels {labels}; name the same file in '
            'both, or set that ann_file to {{labels}} in options'
        )
    wanted = (data.val.folder / data.val.ann_file).resolve()
    sets = [_file_of(dataset) for dataset in _leaves(cfg.val_dataloader['dataset'])]
    sets += [
        Path(metric['ann_file']).resolve()
        for metric in _as_list(cfg.val_evaluator)
        if metric.get('ann_file')
    ]
    other = [path for path in sets if path != wanted]
    if other:
        raise InputError(
            f'{where}: options evaluate {cfg.filename} on {other[0]} instead of '
            f'{wanted}; name the set with the key val of the setting'
        )


def plain(cfg: Config) -> dict[str, Any]:
    """The config as plain Python values."""
    return cfg._cfg_dict.to_dict()


def write_config(content: Mapping[str, Any], path: Path) -> None:
    """Write a config as Python, which keeps tuples; mmengine's dump takes seconds."""
    lines = [
        f'{key} = {pprint.pformat(value, sort_dicts=False, width=88)}'
        for key, value in content.items()
    ]
    path.write_text('\n'.join(lines) + '\n')


def _evaluated_on(cfg: Config, place: EvaluationSet) -> tuple[dict, Any]:
    content = cfg._cfg_dict.to_dict()
    loader = copy.deepcopy(content['val_dataloader'])
    evaluator = copy.deepcopy(content['val_evaluator'])
    leaves = _leaves(loader['dataset'])
    if len(leaves) != 1:
        raise InputError(
            f'val_dataloader of {cfg.filename} has {len(leaves)} datasets; it needs '
            f'one, to be evaluated on {place.folder / place.ann_file}'
        )
    (dataset,) = leaves
    dataset['data_root'] = f'{place.folder}/'
    dataset['ann_file'] = place.ann_file
    dataset['data_prefix'] = dict(dataset.get('data_prefix') or {}, img=place.img)
    for metric in _as_list(evaluator):
        # without a file it takes the instances from the dataset
        if metric.get('ann_file'):
            metric['ann_file'] = str(place.folder / place.ann_file)
    return loader, evaluator


def _leaves(dataset: Any) -> list[Any]:
    """The datasets that read files, inside those that join or repeat them."""
    if 'datasets' in dataset:
        return [leaf for inner in dataset['datasets'] for leaf in _leaves(inner)]
    return _leaves(dataset['dataset']) if 'dataset' in dataset else [dataset]


def _file_of(dataset: Mapping[str, Any]) -> Path:
    # an absolute ann_file stays what it is, as in mmengine
    root, file = (dataset.get(key) or '' for key in ('data_root', 'ann_file'))
    return Path(root, file).resolve()


def _present(cfg: Any, key: str) -> Any:
    """What a config holds under a dotted key; None if there is none."""
    value = cfg
    for part in key.split('.'):
        if isinstance(value, list | tuple):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if hasattr(value, 'get') else None
    return value


def _typed(value: Any, before: Any) -> Any:
    return (
        tuple(value) if isinstance(value, list) and isinstance(before, tuple) else value
    )


def _replace_dict(cfg: Config, content: dict[str, Any]) -> None:
    for key, value in content.items():
        cfg[key] = value


def _walk(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_walk(inner, change) for inner in value)
    return change(value) if isinstance(value, str) else value


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value] if value else []


def _scaled(value: Any, factor: float, limit: int) -> Any:
    if isinstance(value, list | tuple):
        return [_scaled(inner, factor, limit) for inner in value]
    return min(round(value * factor), limit)
