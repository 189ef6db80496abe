"""Compiles a part of the student."""

from __future__ import annotations

from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile modules of the student in place, before the first iteration.

    mmengine's own ``compile=True`` wraps the whole detector, whose heads break the
    graph at every proposal; blocks of a ViT have one shape and no branches. Names in
    checkpoints stay as they are. Whether it pays is for ``tools/benchmark.py
    --compile`` to say: with images of many sizes every size is compiled anew, unless
    ``dynamic=True``. Priority: NORMAL.

    Args:
        module: Dotted name of a module, e.g. ``'backbone.blocks'``; the entries of a
            list of modules are compiled one by one.
        **options: For :func:`torch.compile`, such as ``mode``, ``dynamic``.
    """

    def __init__(self, module: str = 'backbone.blocks', **options: Any) -> None:
        self.module, self.options = module, options

    def before_train(self, runner: Runner) -> None:
        """Compile.

        Raises:
            ValueError: If the detector has no such module.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        key = 'CompileHook.module'
        count = compile_parts(model, self.module, key, **self.options)
        print_log(
            f'compiled {count} modules of {self.module}; the first iterations '
            'take longer',
            logger='current',
        )


def compile_parts(
    model: nn.Module, name: str, key: str = 'compile', **options: Any
) -> int:
    """Apply ``torch.compile`` in place to a module, or to each entry of a list of them.

    Args:
        model: The detector.
        name: Dotted name of the module.
        key: Where the name was given, for messages.
        **options: For :func:`torch.compile`.

    Returns:
        Number of modules that were compiled.

    Raises:
        ValueError: If the model has no such module.
    """
    try:
        found = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"{key}={name}: {error}; choose e.g. 'backbone.blocks' or 'neck'"
        ) from error
    parts = list(found) if isinstance(found, nn.ModuleList) else [found]
    for part in parts:
        part.compile(**options)
    return len(parts)
