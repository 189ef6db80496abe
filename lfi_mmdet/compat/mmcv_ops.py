"""Serve ``mmcv._ext`` where mmcv came without its compiled ops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, NoReturn

from lfi_mmdet.compat import torchvision_ops

EXT_NAME = 'mmcv._ext'


def install_mmcv_ops() -> bool:
    """Put a substitute for ``mmcv._ext`` into ``sys.modules`` if there is none.

    The substitute serves :data:`torchvision_ops.OPS`. Every other op can be looked up,
    as mmcv does when it is imported, and raises once it is called. Compiled ops are
    left alone, even broken ones: importing those has to fail with its own message.

    Returns:
        bool: Whether the substitute was put in by this call.
    """
    if find_spec(EXT_NAME) is not None:
        return False
    spec = ModuleSpec(EXT_NAME, _SubstituteLoader(), origin=torchvision_ops.__name__)
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    sys.modules[EXT_NAME] = module
    # what the import statement does after loading a submodule
    sys.modules['mmcv']._ext = module  # type: ignore[attr-defined]
    return True


class _SubstituteLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(torchvision_ops.OPS, __getattr__=_missing_op)


def _missing_op(name: str) -> Callable:
    # Modules are searched for names such as __file__ and _private ones, by mmengine's
    # registries among others; no op of mmcv begins like that.
    if name.startswith('_'):
        raise AttributeError(f'module {EXT_NAME!r} has no attribute {name!r}')

    def op(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'The op {name!r} is one of those that mmcv has to compile, and this '
            'environment has mmcv without compiled ops. torchvision serves '
            f'{sorted(torchvision_ops.OPS)} in their place. For the others install the '
            'full mmcv: `pip uninstall mmcv-lite`, then `pip install '
            "--no-build-isolation 'mmcv<2.2'`, which compiles it for the installed "
            'torch (minutes; the fork: onedl-mmcv), or `mim install mmcv`, which may '
            'know a ready build.'
        )

    op.__name__ = name
    return op
