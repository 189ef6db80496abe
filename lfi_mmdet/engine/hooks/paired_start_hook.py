"""Starts a run from the weights that its twin starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from lfi_mmdet.compat.checkpoints import load_checkpoint
from lfi_mmdet.engine.preflight import InputError, unwrap_model

#: Where the hook leaves its findings; a checkpoint keeps them for a resumed run
PAIRED_START = 'paired_start'


@HOOKS.register_module()
class PairedStartHook(Hook):
    """Copy every shared initial weight from a file that all arms of a study read.

    Random initialisation depends on how many numbers were drawn before, so one more
    module shifts all that follow it. With the same file for the twin and for its arms,
    two runs of one seed differ in what they are meant to differ in. Runs before the
    first iteration only, never after a resume. Priority: VERY_HIGH.

    Args:
        start: Checkpoint with the twin's initial ``state_dict``.
        keep: Checkpoints that were loaded already, by ``init_cfg`` of the backbone or
            by ``load_from``; what they hold is left as it is.
        own: Prefixes of names that this run has in another form than its twin.
        strict: Whether a weight of the twin that this run lacks is an error. Not in a
            stage before the detection, which trains a part of the model.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        start: str,
        keep: Sequence[str] = (),
        own: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self.start, self.keep, self.own = start, tuple(keep), tuple(own)
        self.strict = strict

    def before_train(self, runner: Runner) -> None:
        """Copy the weights and note what was copied, kept and new.

        Raises:
            InputError: If the twin has a weight that this model lacks or has in
                another shape.
        """
        if runner.iter:
            return
        start = load_checkpoint(self.start)['state_dict']
        model = unwrap_model(runner.model)
        state = model.state_dict()
        kept = self._kept_names(state, runner.cfg.get('load_from'))
        shared, wrong = [], []
        for name, value in start.items():
            if name in kept or name.startswith(self.own):
                continue
            if name not in state:
                wrong.append(f'{name} is missing')
            elif state[name].shape != value.shape:
                wrong.append(
                    f'{name} is {tuple(state[name].shape)}, the twin has '
                    f'{tuple(value.shape)}'
                )
            else:
                shared.append(name)
        if self.strict and wrong:
            raise InputError(
                f'the model does not start like its twin ({self.start}): '
                + '; '.join(wrong[:4])
                + (f' and {len(wrong) - 4} more' if len(wrong) > 4 else '')
                + "; name what the arm has of its own in the study's own_weights"
            )
        if not shared and not kept:
            raise InputError(
                f'no weight of the twin ({self.start}) is in this model; its first '
                f'names are {sorted(state)[:3]}, those of the twin {sorted(start)[:3]}'
            )
        with torch.no_grad():
            for name in shared:
                state[name].copy_(start[name])
        now = model.state_dict()
        expected = weights_digest({name: start[name] for name in shared})
        found = weights_digest({name: now[name] for name in shared})
        if found != expected:
            raise InputError(
                f'the weights copied from {self.start} are not what the model holds '
                f'(sha256 {found[:12]} instead of {expected[:12]})'
            )
        runner.message_hub.update_info(
            PAIRED_START,
            dict(
                sha256=weights_digest(start),
                shared_sha256=found,
                shared=len(shared),
                kept=len(kept),
                new=len(state.keys() - start.keys() - kept),
            ),
        )

    def _kept_names(self, model: Mapping[str, Tensor], whole: str | None) -> set[str]:
        """What the checkpoints have put into the model.

        Args:
            model: Its ``state_dict``.
            whole: The one for the whole model, ``load_from``. Of the others only the
                backbone was read, whatever else they hold.
        """
        names: set[str] = set()
        for path in self.keep:
            content = load_checkpoint(path)
            state = content.get('state_dict', content)
            if path == whole:
                # mmengine leaves out weights of another shape
                names |= {
                    name
                    for name, value in state.items()
                    if name in model and model[name].shape == value.shape
                }
                continue
            prefixed = {name for name in state if name.startswith('backbone.')}
            # a backbone alone may be stored without its prefix
            names |= prefixed or {f'backbone.{name}' for name in state}
        return names & model.keys()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value: Any = state[name].detach().cpu().contiguous()
        digest.update(f'{name}:{value.dtype}:{tuple(value.shape)};'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
