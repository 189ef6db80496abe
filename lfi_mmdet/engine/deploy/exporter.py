"""Writes a detector as one file that runs without this package, or without Python."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads import RTMDetInsHead, SOLOV2Head
from mmdet.models.detectors import BaseDetector
from torch.export import ExportedProgram

from lfi_mmdet.engine.preflight import InputError

from .graph import OUTPUTS, DetectorGraph
from .rewrites import shapes_fixed
from .support import check_supported, refusal

#: Suffix of a file, and what it holds
FORMATS = {'.onnx': 'ONNX', '.pt2': 'torch.export'}
#: Name of the entry that describes a file, in either format
DESCRIPTION = 'lfi_mmdet.json'
_NEEDED = ('onnx', 'onnxscript', 'onnxruntime')
#: Bytes that a file of ONNX holds
_MOST = 2**31 - 2**20


@dataclass(frozen=True)
class Description:
    """What a deployed file says about itself.

    Attributes:
        shape: Height and width of the image it takes, in pixels.
        pad: Value that fills the rest of a smaller image, one per channel.
        classes: Names of the classes, by label.
        masks: ``'box'`` for probabilities within each box, ``'image'`` for a grid over
            the image, None without masks.
        mask_shape: Height and width that this grid is to be enlarged to first, in
            pixels of the padded image.
        mask_values: ``'probabilities'``, or ``'logits'`` to be resized as they are.
        mask_cut: Whether the padding is cut off ``'before'`` or ``'after'`` a grid is
            resized to the size of the image.
        mask_threshold: Probability from which a pixel belongs to the object.
        boxes: ``'head'``; ``'masks'`` if they are those around the masks, and a score
            has the mean probability of its mask as a factor; ``'none'`` if all are
            zeros.
        keep_ratio: Whether an image is resized in its ratio, and the rest padded.
    """

    shape: tuple[int, int]
    pad: tuple[float, ...]
    classes: tuple[str, ...] = ()
    masks: str | None = None
    mask_shape: tuple[int, int] = (1, 1)
    mask_values: str = 'probabilities'
    mask_cut: str = 'after'
    mask_threshold: float = 0.5
    boxes: str = 'head'
    keep_ratio: bool = True

    @classmethod
    def from_text(cls, text: str) -> Description:
        """Read what :meth:`text` wrote.

        Raises:
            ValueError: If another version wrote it, whose entries are others.
        """
        entries = json.loads(text)
        known = {field.name for field in fields(cls)}
        if set(entries) != known:
            raise ValueError(
                f'another version of lfi_mmdet wrote it, as {set(entries) ^ known} '
                'differ; deploy it again'
            )
        for name in ('shape', 'pad', 'classes', 'mask_shape'):
            entries[name] = tuple(entries[name])
        return cls(**entries)

    def text(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self))


def describe(
    detector: BaseDetector,
    shape: tuple[int, int],
    classes: Sequence[str] = (),
    pad: Sequence[float] | None = None,
    keep_ratio: bool = True,
) -> Description:
    """Say what a deployed detector takes and gives.

    Args:
        detector: The detector.
        shape: Height and width of the image in pixels.
        classes: Names of the classes.
        pad: Value that its pipeline pads with, one per channel; None for what its
            ``data_preprocessor`` does.
        keep_ratio: Whether its pipeline keeps the ratio of an image.
    """
    return Description(
        shape=shape,
        pad=tuple(pad) if pad is not None else _padding(detector.data_preprocessor),
        classes=tuple(classes),
        keep_ratio=keep_ratio,
        **_masks(detector, shape),
    )


def _masks(detector: BaseDetector, shape: tuple[int, int]) -> dict[str, Any]:
    """What there is to say about masks, for :class:`Description`."""
    model: Any = detector
    head = getattr(model, 'bbox_head', None)
    if isinstance(head, RTMDetInsHead):
        return dict(
            masks='image',
            mask_shape=_multiple(shape, head.prior_generator.strides[0][0]),
            mask_values='logits',
            mask_threshold=head.test_cfg.mask_thr_binary,
        )
    if hasattr(model, 'panoptic_head'):
        return dict(
            masks='image',
            mask_shape=shape,
            mask_values='logits',
            mask_cut='before',
            boxes='masks',
        )
    if isinstance(getattr(model, 'mask_head', None), SOLOV2Head):
        return dict(
            masks='image',
            mask_shape=_multiple(shape, model.mask_head.mask_stride),
            mask_cut='before',
            mask_threshold=model.mask_head.test_cfg.mask_thr,
            boxes='none',
        )
    if not getattr(model, 'with_mask', False):
        return {}
    return dict(masks='box', mask_threshold=model.roi_head.test_cfg.mask_thr_binary)


def _multiple(shape: tuple[int, int], stride: int) -> tuple[int, int]:
    height, width = (-(-side // stride) * stride for side in shape)
    return height, width


def _padding(preprocessor: Any) -> tuple[float, ...]:
    """What a ``data_preprocessor`` pads with, before it normalizes."""
    value = float(getattr(preprocessor, 'pad_value', 0))
    if not getattr(preprocessor, '_enable_normalize', False):
        return (value,) * 3
    filled = preprocessor.mean.flatten() + value * preprocessor.std.flatten()
    swapped = getattr(preprocessor, '_channel_conversion', False)
    return tuple((filled.flip(0) if swapped else filled).tolist())


def export_program(
    detector: BaseDetector, shape: tuple[int, int], max_candidates: int | None = None
) -> ExportedProgram:
    """Record the graph of a detector, from pixels to detections.

    Args:
        detector: A detector in evaluation mode, on the CPU, without a teacher.
        shape: Height and width of the image in pixels.
        max_candidates: See :func:`~.fixed_shapes.multiclass_nms`.

    Returns:
        A program of one input ``image`` and the outputs of
        :class:`~.graph.DetectorGraph`, in which a score of 0 marks what is no
        detection. Masks are as :class:`Description` says.

    Raises:
        InputError: If no graph can be recorded of the detector.
    """
    check_supported(detector)
    graph = DetectorGraph(detector, shape).eval()
    image = torch.zeros(1, 3, *shape)
    # torch prints the graph so far if it fails
    silent = redirect_stderr(io.StringIO())
    try:
        with torch.no_grad(), shapes_fixed(detector, max_candidates):
            with libraries_quiet(), silent:
                return torch.export.export(graph, (image,), strict=False)
    except Exception as error:  # torch.export has no class of its own for them
        reason = ''.join(str(error).strip().splitlines()[:1])
        raise refusal(detector, f'torch.export says: {reason}') from error


def check_format(out: str | Path) -> str:
    """Return the suffix of a file to write, once it is known that it can be.

    Raises:
        InputError: If the suffix names no format, or a package is missing.
    """
    suffix = Path(out).suffix
    if suffix not in FORMATS:
        choices = ', '.join(f'{end} ({name})' for end, name in FORMATS.items())
        raise InputError(f'{out}: {suffix!r} names no format; choose {choices}')
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if suffix == '.onnx' and missing:
        raise InputError(
            f'{out}: ONNX needs {", ".join(missing)}: pip install '
            f'{" ".join(missing)}, or write a .pt2 file'
        )
    return suffix


def write_program(
    program: ExportedProgram,
    out: str | Path,
    description: Description,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Write a program, aside first, as ONNX (``.onnx``) or ``torch.export`` (``.pt2``).

    Args:
        program: The program.
        out: The file.
        description: What it is to say about itself.
        check: Called with the file before it is put in place; what it raises keeps it
            from there.

    Raises:
        InputError: If the suffix names no format, a package is missing, or the file
            cannot be written; then there is none.
    """
    out = Path(out)
    suffix = check_format(out)
    size = sum(value.nbytes for value in program.state_dict.values())
    if suffix == '.onnx' and size > _MOST:
        raise InputError(
            f'{out}: the weights have {size / 2**30:.1f} GiB, and one file of ONNX '
            'holds less than 2; write a .pt2 file'
        )
    aside = out.with_name(f'.{os.getpid()}.{out.name}')
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if suffix == '.pt2':
                torch.export.save(
                    program, aside, extra_files={DESCRIPTION: description.text()}
                )
            else:
                _write_onnx(program, aside, description)
        except (OSError, RuntimeError) as error:
            raise InputError(f'{out} cannot be written: {error}') from error
        if check is not None:
            check(aside)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)
    return out


def _write_onnx(program: ExportedProgram, out: Path, description: Description) -> None:
    outputs = OUTPUTS if description.masks else OUTPUTS[:-1]
    with libraries_quiet():
        # the exporter takes parts of the program for itself
        written = torch.onnx.export(
            copy.copy(program),
            dynamo=True,
            verbose=False,
            input_names=['image'],
            output_names=list(outputs),
        )
    assert written is not None
    written.model.metadata_props[DESCRIPTION] = description.text()
    written.save(out)


@contextmanager
def libraries_quiet() -> Iterator[None]:
    """Keep to errors what has a line for each of many operators."""
    loggers = [logging.getLogger(name) for name in ('torch', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
