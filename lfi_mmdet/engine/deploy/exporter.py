"""Writes a detector as one file that runs without this package, or without Python."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads import RTMDetInsHead
from mmdet.models.detectors import (
    BaseDetector,
    DetectionTransformer,
    MaskFormer,
)
from mmdet.models.detectors.single_stage_instance_seg import (
    SingleStageInstanceSegmentor,
)
from torch.export import ExportedProgram

from lfi_mmdet.engine.preflight import InputError

from .graph import OUTPUTS, DetectorGraph
from .rewrites import shapes_fixed

#: Suffix of a file, and what it holds
FORMATS = {'.onnx': 'ONNX', '.pt2': 'torch.export'}
#: Name of the entry that describes a file, in either format
DESCRIPTION = 'lfi_mmdet.json'
#: mmdet's prediction of these reads shapes or numbers of objects from tensors
_DEPEND_ON_VALUES = (DetectionTransformer, MaskFormer, SingleStageInstanceSegmentor)
_NEEDED = ('onnx', 'onnxscript')


@dataclass(frozen=True)
class Description:
    """What a deployed file says about itself.

    Attributes:
        shape: Height and width of the image it takes, in pixels.
        mean: Value that pads an image, one per channel of the input.
        classes: Names of the classes, by label.
        masks: ``'box'`` for probabilities within each box, ``'image'`` for logits on
            a grid over the image, None without masks.
        mask_stride: Pixels per cell of that grid.
        mask_threshold: Probability from which a pixel belongs to the object.
        rgb: Whether the input is RGB; BGR otherwise.
    """

    shape: tuple[int, int]
    mean: tuple[float, float, float]
    classes: tuple[str, ...] = ()
    masks: str | None = None
    mask_stride: int = 1
    mask_threshold: float = 0.5
    rgb: bool = False

    @classmethod
    def from_text(cls, text: str) -> Description:
        """Read what :meth:`text` wrote."""
        entries = json.loads(text)
        for name in ('shape', 'mean', 'classes'):
            entries[name] = tuple(entries[name])
        return cls(**entries)

    def text(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self))


def describe(
    detector: BaseDetector, shape: tuple[int, int], classes: Sequence[str] = ()
) -> Description:
    """Say what a deployed detector takes and gives."""
    model: Any = detector
    preprocessor = model.data_preprocessor
    mean = (0.0, 0.0, 0.0)
    if getattr(preprocessor, '_enable_normalize', False):
        mean = tuple(preprocessor.mean.flatten().tolist())
    swapped = getattr(preprocessor, '_channel_conversion', False)
    masks, stride, threshold = None, 1, 0.5
    head = getattr(model, 'bbox_head', None)
    if isinstance(head, RTMDetInsHead):
        masks, stride = 'image', head.prior_generator.strides[0][0]
        threshold = head.test_cfg.mask_thr_binary
    elif getattr(model, 'with_mask', False):
        masks = 'box'
        threshold = model.roi_head.test_cfg.mask_thr_binary
    return Description(
        shape=shape,
        mean=mean[::-1] if swapped else mean,
        classes=tuple(classes),
        masks=masks,
        mask_stride=stride,
        mask_threshold=threshold,
    )


def export_program(detector: BaseDetector, shape: tuple[int, int]) -> ExportedProgram:
    """Record the graph of a detector, from pixels to detections.

    Args:
        detector: A detector in evaluation mode, on the CPU, without a teacher.
        shape: Height and width of the image in pixels.

    Returns:
        A program of one input ``image`` and the outputs of
        :class:`~.graph.DetectorGraph`, in which a score of 0 marks what is no
        detection. Masks are as :class:`Description` says.

    Raises:
        InputError: If no graph can be recorded of the detector.
    """
    if isinstance(detector, _DEPEND_ON_VALUES):
        raise InputError(_refusal(detector))
    graph = DetectorGraph(detector, shape).eval()
    image = torch.zeros(1, 3, *shape)
    try:
        with torch.no_grad(), shapes_fixed(detector):
            return torch.export.export(graph, (image,), strict=False)
    except InputError:
        raise
    except Exception as error:  # torch.export has no class of its own for them
        reason = ''.join(str(error).strip().splitlines()[:1])
        raise InputError(
            f'{_refusal(detector)}; torch.export says: {reason}'
        ) from error


def _refusal(detector: BaseDetector) -> str:
    return (
        f'model.type={type(detector).__name__} cannot be exported, as its prediction '
        'takes steps that depend on values of the image; detectors of one stage '
        'without transformers, RTMDet-Ins, and Faster, Mask and Cascade R-CNN can'
    )


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
            f'{" ".join(missing)} onnxruntime, or write a .pt2 file'
        )
    return suffix


def write_program(
    program: ExportedProgram, out: str | Path, description: Description
) -> Path:
    """Write a program, aside first, as ONNX (``.onnx``) or ``torch.export`` (``.pt2``).

    Raises:
        InputError: If the suffix names no format, a package is missing, or the file
            cannot be written; then there is none.
    """
    out = Path(out)
    suffix = check_format(out)
    aside = out.with_name(f'.{os.getpid()}.{out.name}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if suffix == '.pt2':
            torch.export.save(
                program, aside, extra_files={DESCRIPTION: description.text()}
            )
        else:
            _write_onnx(program, aside, description)
        os.replace(aside, out)
    except (OSError, RuntimeError) as error:
        raise InputError(f'{out} cannot be written: {error}') from error
    finally:
        aside.unlink(missing_ok=True)
    return out


def _write_onnx(program: ExportedProgram, out: Path, description: Description) -> None:
    outputs = OUTPUTS if description.masks else OUTPUTS[:-1]
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
