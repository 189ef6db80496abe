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
from .fixed_masks import boxes_of_masks, maskness
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
        if self.description.boxes == 'head':
            result = result[self._in_image(result.bboxes, scale, size)]
        # of width and height, which are rounded each for itself
        result.bboxes = result.bboxes / torch.tensor([*scale, *scale])
        if self.description.masks == 'box':
            # a mask is that of the whole box, into the padding
            result.masks = self._box_masks(result.masks, result.bboxes, size)
        elif self.description.masks == 'image':
            self._add_image_masks(result, scale, size)
        limits = torch.tensor([size[1], size[0]] * 2, dtype=result.bboxes.dtype)
        result.bboxes = torch.minimum(result.bboxes.clamp(min=0), limits)
        if self.description.boxes == 'masks':
            # some lay in the padding
            order = result.scores.argsort(descending=True, stable=True)
            result = result[order[result.scores[order] > 0]]
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

    def _in_image(
        self, boxes: Tensor, scale: tuple[float, float], size: tuple[int, int]
    ) -> Tensor:
        """Which boxes of the graph (N, 4) do not lie in the padding as a whole."""
        inside = torch.ones(len(boxes), dtype=torch.bool)
        for axis, padded in enumerate(reversed(self.description.shape)):
            end = round(size[1 - axis] * scale[axis])
            if end < padded:
                inside &= boxes[:, axis] < end
        return inside

    def _box_masks(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        pasted = torch.zeros(len(masks), *size, dtype=torch.bool)
        for i, (mask, box) in enumerate(zip(masks, boxes)):
            values, place = _do_paste_mask(mask[None, None], box[None], *size)
            pasted[(slice(i, i + 1), *place)] = (
                values >= self.description.mask_threshold
            )
        return pasted

    def _add_image_masks(
        self, result: InstanceData, scale: tuple[float, float], size: tuple[int, int]
    ) -> None:
        """Bring masks to the size of the image, and with them what follows from them.

        Args:
            result: Detections with grids as masks; is changed.
            scale: Of width and height.
            size: Height and width of the image.
        """
        told = self.description
        if not len(result):
            result.masks = torch.zeros(0, *size, dtype=torch.bool)
            return
        padded = _resized(result.masks, told.mask_shape)
        if told.mask_cut == 'before':
            height, width = (round(side * by) for side, by in zip(size, scale[::-1]))
            values = _resized(padded[:, :height, :width], size)
        else:
            height, width = (
                math.ceil(side / by) for side, by in zip(told.mask_shape, scale[::-1])
            )
            values = _resized(padded, (height, width))[:, : size[0], : size[1]]
        if told.boxes == 'masks':
            # the graph has seen the padding, and another size
            result.scores = result.scores * maskness(values) / maskness(padded)
        if told.mask_values == 'logits':
            values = values.sigmoid()
        result.masks = values > told.mask_threshold
        if told.boxes == 'masks':
            result.bboxes = boxes_of_masks(result.masks)


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, h, w) bilinearly."""
    if values.shape[-2:] == size:
        return values
    return F.interpolate(values[None], size=size, mode='bilinear')[0]


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
