"""Writes a teacher that was trained from captions: weights and where they are from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from mmengine.config import Config

from lfi_mmdet.compat.checkpoints import load_checkpoint

from .digest import file_digest
from .preflight import InputError, check_checkpoint

#: Where the network is in a CaptionPretrainer
PREFIX = 'network.'
#: What is told of a layer in the provenance
GATE_METRICS = ('presence_auc', 'pointing_multi', 'specific_pointing')


def export_teacher(
    checkpoint: str,
    out: Path,
    gate: Path | Mapping[str, Path],
    record: dict[str, Any],
) -> dict[str, Any]:
    """Write the weights of a trained teacher, in half precision, and a record of them.

    Args:
        checkpoint: Of a training with :class:`CaptionPretrainer`.
        out: File of weights to write, ``.pt``; the record goes beside it, as ``.yaml``.
        gate: ``teacher.json`` of ``tools/check_teacher.py`` on scenes that the teacher
            was not trained on; several by what they show.
        record: What else to tell: machine, versions, commit.

    Returns:
        The record.

    Raises:
        InputError: If the checkpoint is of another model or a number in it is not
            finite, or ``gate`` is no such file.
    """
    check_checkpoint(checkpoint, 'checkpoint')
    if out.suffix != '.pt':
        raise InputError(f'out={out}: weights of open_clip end in .pt')
    content = load_checkpoint(checkpoint)
    state = {
        name.removeprefix(PREFIX): value.half() if value.is_floating_point() else value
        for name, value in content['state_dict'].items()
        if name.startswith(PREFIX)
    }
    if not state:
        raise InputError(
            f'{checkpoint} has no {PREFIX}*: it is not of a CaptionPretrainer'
        )
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise InputError(f'{checkpoint}: not finite in half precision: {broken}')
    meta = content['meta']
    scale = float(state['logit_scale'].float().exp())
    told = dict(
        weights=out.name,
        numbers=sum(value.numel() for value in state.values()),
        temperature=round(1 / scale, 4),
        iterations=int(meta['iter']),
        seed=meta.get('seed'),
        trained_with=_training(meta),
        gate=(
            {name: _gate(path) for name, path in gate.items()}
            if isinstance(gate, Mapping)
            else _gate(gate)
        ),
        **record,
    )
    aside = out.with_name(f'.{out.name}')
    try:
        torch.save(state, aside)
        told['bytes'] = aside.stat().st_size
        told['sha256'] = file_digest(aside)
        # versions come as a kind of str that YAML does not know
        told = json.loads(json.dumps(told))
        text = yaml.safe_dump(told, sort_keys=False, width=88)
        os.replace(aside, out)
        aside.write_text(text)
        os.replace(aside, out.with_suffix('.yaml'))
    finally:
        aside.unlink(missing_ok=True)
    return told


def _training(meta: dict[str, Any]) -> dict[str, Any]:
    """What the model was trained on and how, from the config in the checkpoint."""
    cfg = Config.fromstring(meta['cfg'], '.py')
    return dict(
        data=cfg.train_dataloader.dataset.to_dict(),
        batch_size=cfg.train_dataloader.batch_size,
        model=cfg.model.to_dict(),
        optimizer=cfg.optim_wrapper.optimizer.to_dict(),
    )


def _gate(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        layers = report['layers']
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f'gate={path} is not the teacher.json of tools/check_teacher.py: {error!r}'
        ) from None
    return dict(
        images=report.get('num_images'),
        layers=[
            dict(
                layer=one['layer'],
                reading=one['reading'],
                **{
                    name: [round(one[name][k], 4) for k in ('value', 'low', 'high')]
                    for name in GATE_METRICS
                    if one.get(name)
                },
            )
            for one in layers
        ],
    )
