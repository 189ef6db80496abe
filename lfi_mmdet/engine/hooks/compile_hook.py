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
        try:
            found = model.get_submodule(self.module)
        except AttributeError as error:
            raise ValueError(
                f'CompileHook.module={self.module!r}: {error}; choose e.g. '
                "'backbone.blocks' or 'neck'"
            ) from error
        parts = list(found) if isinstance(found, nn.ModuleList) else [found]
        for part in parts:
            part.compile(**self.options)
        print_log(
            f'compiled {len(parts)} modules of {self.module}; the first iterations '
            'take longer',
            logger='current',
        )
