"""From config and checkpoint to a deployed file that was compared with its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from lfi_mmdet.compat.checkpoints import load_checkpoint
from lfi_mmdet.engine.export import choose_weights
from lfi_mmdet.engine.inference import without_teacher
from lfi_mmdet.engine.preflight import InputError, check_checkpoint, check_weights

from .agreement import Agreement, compare
from .deployed import DeployedDetector
from .exporter import check_format, describe, export_program, write_program

#: Largest differences of boxes in pixels, scores, and masks in shares of their pixels
TOLERANCES = (0.1, 1e-3, 1e-2)
_RESIZE = ('Resize', 'FixScaleResize', 'FixShapeResize')


@dataclass(frozen=True)
class Deployment:
    """What was written.

    Attributes:
        file: The file.
        agreements: How it compares with the detector, by image.
        compared: Whether the detector finds anything in any of the images; if not, the
            comparison says nothing.
    """

    file: Path
    agreements: dict[str, Agreement]

    @property
    def compared(self) -> bool:
        return any(agreement.detections for agreement in self.agreements.values())


def deploy(
    cfg: Config,
    checkpoint: str,
    out: str | Path,
    shape: Sequence[int] | None = None,
    images: Sequence[str] = (),
    force: bool = False,
    max_candidates: int | None = None,
) -> Deployment:
    """Write a detector as one file, once it finds what the detector finds.

    Args:
        cfg: Config of a training, or of a student; its teacher is left out.
        checkpoint: Its weights.
        out: ``.onnx`` or ``.pt2``.
        shape: Height and width of the image that the file takes, in pixels; None takes
            what the test pipeline resizes to.
        images: Files to compare on; none compares on noise.
        force: Replace ``out`` if it exists.
        max_candidates: See :func:`~.fixed_shapes.multiclass_nms`.

    Raises:
        InputError: If anything does not fit, no graph can be recorded, or the file
            would find something else; then nothing is written.
    """
    out = Path(out)
    check_format(out)
    if out.exists() and not force:
        raise InputError(f'{out} exists; choose another name, or add --force')
    if max_candidates is not None and max_candidates < 1:
        raise InputError(f'--max-candidates {max_candidates}: has to be at least 1')
    height, width = shape or tested_shape(cfg)
    if height < 1 or width < 1:
        raise InputError(f'--shape {height} {width} is no size of an image')
    padded = _padded((height, width), cfg)
    if padded != (height, width):
        raise InputError(
            f'--shape {height} {width}: the detector takes multiples of '
            f'model.data_preprocessor.pad_size_divisor={_divisor(cfg)}, such as '
            f'{padded[0]} {padded[1]}'
        )
    pictures = _read(images, (height, width))
    detector, classes = _build(cfg, checkpoint)
    description = describe(detector, (height, width), classes, **pipeline_facts(cfg))
    program = export_program(detector, (height, width), max_candidates)
    most = detection_limits(detector)
    agreements: dict[str, Agreement] = {}

    def check(file: Path) -> None:
        deployed = DeployedDetector(file)
        for name, picture in pictures.items():
            found = compare(_predict(detector, picture), deployed(picture), **most)
            if not found.within(*TOLERANCES):
                raise InputError(
                    f'{out} was not written, as it would not find in {name} what '
                    f'{checkpoint} finds: {found.text()}'
                )
            agreements[name] = found

    write_program(program, out, description, check)
    return Deployment(out, agreements)


def tested_shape(cfg: Config) -> tuple[int, int]:
    """Height and width that the test pipeline resizes to, padded as batches are.

    Raises:
        InputError: If no step of the pipeline says so.
    """
    steps = _steps(cfg, *_RESIZE)
    scale = steps[-1].get('scale') if steps else None
    if steps and 'width' in steps[-1]:
        scale = steps[-1]['width'], steps[-1].get('height')
    if isinstance(scale, int):
        scale = (scale, scale)
    if (
        not isinstance(scale, (tuple, list))
        or len(scale) != 2
        or not all(isinstance(side, int) for side in scale)
    ):
        raise InputError(
            'no Resize with a scale of one size in test_dataloader.dataset.pipeline '
            'says what size an image has; pass --shape HEIGHT WIDTH'
        )
    return _padded((scale[1], scale[0]), cfg)


def pipeline_facts(cfg: Config) -> dict[str, Any]:
    """What the test pipeline does to an image besides its size, for ``describe``."""
    facts: dict[str, Any] = {}
    for step in _steps(cfg, *_RESIZE):
        facts['keep_ratio'] = bool(step.get('keep_ratio', 'width' in step))
    for step in _steps(cfg, 'Pad'):
        value = step.get('pad_val', 0)
        if isinstance(value, dict):
            value = value.get('img', 0)
        facts['pad'] = (value,) * 3 if isinstance(value, (int, float)) else value
    return facts


def detection_limits(detector: BaseDetector) -> dict[str, Any]:
    """From which score on, and how many detections there are, for ``compare``."""
    model: Any = detector
    parts = ('roi_head', 'panoptic_fusion_head', 'mask_head', 'bbox_head')
    found = (getattr(model, name, None) for name in parts)
    cfg = next(part for part in found if part is not None).test_cfg
    # of SOLOv2, what Matrix NMS leaves has to exceed another threshold
    limits = dict(score_thr=cfg.get('filter_thr', cfg.get('score_thr', 0.0)))
    most = cfg.get('max_per_img', cfg.get('max_per_image', -1))
    return {**limits, 'max_per_img': most} if most > 0 else limits


def _steps(cfg: Config, *names: str) -> list[Any]:
    """Steps of the test pipeline, by the names of their types."""
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    found = []
    for step in dataset.get('pipeline', []):
        kind = step.get('type')
        name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
        if name.rpartition('.')[2] in names:
            found.append(step)
    return found


def _divisor(cfg: Config) -> int:
    return cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)


def _padded(shape: tuple[int, int], cfg: Config) -> tuple[int, int]:
    height, width = (-(-side // _divisor(cfg)) * _divisor(cfg) for side in shape)
    return height, width


def _read(images: Sequence[str], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Images in the shape of the graph, so that nothing has to be resized."""
    if not images:
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        return {'noise': noise}
    pictures = {}
    for image in images:
        pixels = mmcv.imread(image) if Path(image).is_file() else None
        if pixels is None:
            raise InputError(f'--images {image} does not exist or is no image')
        pictures[image] = cv2.resize(pixels, shape[::-1])
    return pictures


def _build(cfg: Config, checkpoint: str) -> tuple[BaseDetector, tuple[str, ...]]:
    """The detector with its weights, in evaluation mode, and its classes."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    without_teacher(cfg)
    check_checkpoint(checkpoint, 'checkpoint')
    detector: Any = MODELS.build(cfg.model)
    check_weights(detector, checkpoint, 'test')
    content = load_checkpoint(checkpoint)
    weights, _ = choose_weights(content, checkpoint, None)
    # what is left over belongs to the distiller
    detector.load_state_dict(weights, strict=False)
    meta = content.get('meta') or {}
    told = meta.get('dataset_meta') or {}
    classes = told.get('classes') or meta.get('CLASSES') or ()
    return detector.eval(), tuple(classes)


def _predict(detector: BaseDetector, image: np.ndarray) -> InstanceData:
    size = image.shape[:2]
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    )
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    with torch.no_grad():
        found = detector.test_step(dict(inputs=[pixels], data_samples=[sample]))
    return found[0].pred_instances
