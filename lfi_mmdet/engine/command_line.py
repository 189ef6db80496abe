"""What the tools have in common: flags, config and runner."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import get_installed_path, is_installed

from lfi_mmdet.shipped import shipped_root

from .distributed import LAUNCHERS
from .option_values import parse_option_value
from .preflight import InputError

#: Environment variable of the number of a process on its machine
_LOCAL_RANK = dict(
    pytorch='LOCAL_RANK', slurm='SLURM_LOCALID', mpi='OMPI_COMM_WORLD_LOCAL_RANK'
)


class ConfigOptions(DictAction):
    """``--cfg-options`` of mmengine, with a message instead of a traceback.

    Strings keep their spaces, see :func:`parse_option_value`.
    """

    #: What mmengine calls for the value of every pair
    _parse_iterable = staticmethod(parse_option_value)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Parse ``KEY=VALUE`` pairs; ends the program if one is none."""
        for value in values:
            if '=' not in value:
                parser.error(f'--cfg-options: {value!r} is not of the form KEY=VALUE')
        try:
            super().__call__(parser, namespace, values, option_string)
        except ValueError as error:
            parser.error(f'--cfg-options: {error}')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that MMDetection's train.py and test.py share."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints; default: the config\'s "work_dir", or '
        'work_dirs/ and the name of the config',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_cfg.max_epochs=24; lists as '
        'key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]"; '
        'a string with a comma as "key=\'a, b\'"',
    )
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='job launcher'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the common flags.

    Args:
        args: With ``config`` and what :func:`add_common_arguments` adds.

    Raises:
        InputError: If the file is missing or cannot be read, or an option does not fit.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    setup_cache_size_limit_of_dynamo()
    path = args.config
    cfg = read_config(path, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        stem = os.path.splitext(os.path.basename(path))[0]
        cfg.work_dir = os.path.join('./work_dirs', stem)
    return cfg


def read_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config and merge ``--cfg-options`` into it.

    Args:
        path: File, or one of a package as in ``_base_``, such as
            ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``; ours have the prefix
            ``lfi_mmdet::``.
        options: To merge.

    Raises:
        InputError: See :func:`load_config`.
    """
    file = config_of_package(*path.split('::', 1)) if '::' in path else path
    if not os.path.isfile(file):
        raise InputError(f'config {path}: no such file{_neighbours(file)}')
    try:
        cfg = Config.fromfile(file)
    except (OSError, SyntaxError, NameError, TypeError, KeyError) as error:
        raise InputError(
            f'config {path} cannot be read: {type(error).__name__}: {error}'
        ) from error
    try:
        cfg.merge_from_dict(options or {})
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f'--cfg-options {options} do not fit {path}: {error}'
        ) from error
    return cfg


def config_of_package(package: str, name: str) -> str:
    """Where a config of an installed package is.

    Args:
        package: Such as ``mmdet``.
        name: Path below its ``configs``.

    Raises:
        InputError: If the package is not installed or has no configs.
    """
    if package == 'lfi_mmdet':
        folder = str(shipped_root())
    elif is_installed(package):
        folder = os.path.join(get_installed_path(package), '.mim')
    else:
        raise InputError(f'config {package}::{name}: {package} is not installed')
    if not os.path.isdir(folder):
        raise InputError(f'config {package}::{name}: {package} has no configs')
    return os.path.join(folder, 'configs', name)


def process_number(launcher: str) -> int:
    """Number of this process on its machine, before they are connected."""
    return int(os.environ.get(_LOCAL_RANK.get(launcher, ''), 0))


def build_runner(cfg: Config) -> Runner:
    """Build the default runner, or the one that ``runner_type`` names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _neighbours(path: str) -> str:
    folder = os.path.dirname(path) or '.'
    if not os.path.isdir(folder):
        return f', nor is there a folder {folder}'
    names: Sequence[str] = sorted(n for n in os.listdir(folder) if n.endswith('.py'))
    return f'; configs in {folder}: {", ".join(names[:20]) or "none"}'
