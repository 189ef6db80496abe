"""Runs a deployed file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.structures import InstanceData
from torch import Tensor

from lfi_mmdet.engine.preflight import InputError

from .exporter import DESCRIPTION, FORMATS, Description
from .fixed_masks import boxes_of_masks
from .graph import OUTPUTS


class DeployedDetector:
    """A detector read from a file that ``lfi-mmdet deploy`` wrote.

    Args:
        path: ``.onnx``, run by onnxruntime, or ``.pt2``, run by torch; on the CPU.

    Attributes:
        description: What the file says about itself.

    Raises:
        InputError: If there is no such file, it is no deployed detector, or
            onnxruntime is missing.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if path.suffix not in FORMATS:
            raise InputError(f'{path} ends in none of {", ".join(FORMATS)}')
        if not path.is_file():
            raise InputError(f'{path} does not exist')
        read = _read_onnx if path.suffix == '.onnx' else _read_program
        try:
            self._run, text = read(path)
            self.description = Description.from_text(text)
        except ImportError as error:
            raise InputError(
                f'{path} needs {error.name}: pip install {error.name}'
            ) from error
        except Exception as error:  # either library has many
            raise InputError(
                f'{path} is no detector that lfi-mmdet deploy wrote: {error}'
            ) from error

    def __call__(self, image: np.ndarray) -> InstanceData:
        """Detect objects.

        Args:
            image: (H, W, 3) of uint8, BGR, as :func:`mmcv.imread` returns it.

        Returns:
            ``bboxes`` (N, 4) in pixels of the image, zeros if the detector has none;
            ``scores`` (N,), ``labels`` (N,), and ``masks`` (N, H, W) of bool if the
            detector has any.
        """
        pixels, scale = self._fit(image)
        values = self._run(pixels)
        found = dict(zip(OUTPUTS, values))
        kept = found['scores'] > 0
        result = InstanceData(**{name: value[kept] for name, value in found.items()})
        size = image.shape[:2]
        # of width and height, which are rounded each for itself
        result.bboxes = result.bboxes / torch.tensor([*scale, *scale])
        if self.description.masks == 'box':
            # a mask is that of the whole box, into the padding
            result.masks = self._box_masks(result.masks, result.bboxes, size)
        elif self.description.masks == 'image':
            result.masks = self._image_masks(result.masks, scale, size)
        if self.description.boxes == 'masks':
            result.bboxes = boxes_of_masks(result.masks)
        limits = torch.tensor([size[1], size[0]] * 2, dtype=result.bboxes.dtype)
        result.bboxes = torch.minimum(result.bboxes.clamp(min=0), limits)
        return result

    def _fit(self, image: np.ndarray) -> tuple[Tensor, tuple[float, float]]:
        """Resize to the shape of the graph, pad the rest, and tell both scales."""
        height, width = self.description.shape
        size = (width, height)
        if self.description.keep_ratio:
            ratio = min(height / image.shape[0], width / image.shape[1])
            # as mmcv.imrescale rounds
            size = (
                max(1, int(image.shape[1] * ratio + 0.5)),
                max(1, int(image.shape[0] * ratio + 0.5)),
            )
        scale = size[0] / image.shape[1], size[1] / image.shape[0]
        if scale != (1.0, 1.0):
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        pad = torch.tensor(self.description.pad).view(3, 1, 1)
        pixels = pad.expand(3, height, width).clone()
        pixels[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(
            np.ascontiguousarray(image.transpose(2, 0, 1))
        )
        return pixels[None], scale

    def _box_masks(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        pasted = torch.zeros(len(masks), *size, dtype=torch.bool)
        for i, (mask, box) in enumerate(zip(masks, boxes)):
            values, place = _do_paste_mask(mask[None, None], box[None], *size)
            pasted[(slice(i, i + 1), *place)] = (
                values >= self.description.mask_threshold
            )
        return pasted

    def _image_masks(
        self, masks: Tensor, scale: tuple[float, float], size: tuple[int, int]
    ) -> Tensor:
        told = self.description
        if not len(masks):
            return torch.zeros(0, *size, dtype=torch.bool)
        values = F.interpolate(
            masks[None], scale_factor=told.mask_stride, mode='bilinear'
        )
        if told.mask_cut == 'before':
            height, width = (
                round(side * by) for side, by in zip(size, reversed(scale))
            )
            values = values[:, :, :height, :width]
            if scale != (1.0, 1.0):
                values = F.interpolate(values, size=size, mode='bilinear')
        elif scale != (1.0, 1.0):
            width, height = (
                math.ceil(side / by)
                for side, by in zip(reversed(values.shape[-2:]), scale)
            )
            values = F.interpolate(values, size=(height, width), mode='bilinear')
        values = values[0, :, : size[0], : size[1]]
        if told.mask_values == 'logits':
            values = values.sigmoid()
        return values > told.mask_threshold


def _read_program(path: Path) -> tuple[Callable[[Tensor], Any], str]:
    extra = {DESCRIPTION: ''}
    program = torch.export.load(path, extra_files=extra).module()

    def run(pixels: Tensor) -> Any:
        with torch.no_grad():
            return program(pixels)

    return run, extra[DESCRIPTION]


def _read_onnx(path: Path) -> tuple[Callable[[Tensor], Any], str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider']
    )
    text = session.get_modelmeta().custom_metadata_map[DESCRIPTION]

    def run(pixels: Tensor) -> Any:
        values = session.run(None, {'image': pixels.numpy()})
        return [torch.from_numpy(value) for value in values]

    return run, text
