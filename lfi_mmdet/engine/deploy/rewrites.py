"""What mmdet's detectors do otherwise while their graph is recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import MaskFormerHead, RTMDetInsHead, SOLOV2Head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmengine.structures import InstanceData
from torch import Tensor, nn

from . import fixed_masks, fixed_shapes


@contextmanager
def shapes_fixed(
    detector: nn.Module, max_candidates: int | None = None
) -> Iterator[None]:
    """Have a detector predict in tensors whose shapes no picture changes.

    Functions of mmdet are replaced for the time of the context: no other detector of
    this process may predict meanwhile.

    Args:
        detector: Changed for the time of the context only.
        max_candidates: See :func:`~.fixed_shapes.multiclass_nms` and
            :func:`~.fixed_masks.grid_masks`.
    """
    replacements = dict(
        filter_scores_and_topk=fixed_shapes.filter_scores_and_topk,
        multiclass_nms=partial(
            fixed_shapes.multiclass_nms, max_candidates=max_candidates
        ),
    )
    rpn_head = getattr(detector, 'rpn_head', None)
    with ExitStack() as stack:
        for name, replacement in replacements.items():
            for module in _modules_with(name):
                stack.enter_context(mock.patch.object(module, name, replacement))
        for part in detector.modules():
            for attribute, value in _replacements(
                part, part is rpn_head, max_candidates
            ):
                stack.enter_context(mock.patch.object(part, attribute, value))
        yield


def _modules_with(function: str) -> list[Any]:
    """Modules that have imported a function by its name."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith('mmdet.models') and function in vars(module)
    ]


def _replacements(
    part: nn.Module, proposes: bool, max_candidates: int | None
) -> Iterator[tuple[str, Any]]:
    """Names of what to replace in a module, and what replaces it."""
    if isinstance(part, RTMDetInsHead):
        yield '_bbox_mask_post_process', partial(_dense_masks, part)
    elif isinstance(part, MaskFormerHead):  # a BaseDenseHead as well
        yield 'predict', partial(_query_logits, part)
    elif isinstance(part, BaseDenseHead):
        yield '_bbox_post_process', partial(_dense_boxes, proposes)
    elif isinstance(part, SingleRoIExtractor):
        yield 'forward', partial(_extract, part)
    elif isinstance(part, RoIAlign) and part.pool_mode == 'avg':
        # a compiled op of mmcv can be neither recorded nor written
        yield 'use_torchvision', True
    elif isinstance(part, FCNMaskHead):
        yield 'predict_by_feat', partial(_roi_masks, part)
    elif isinstance(part, SOLOV2Head):
        yield '_predict_by_feat_single', partial(_grid_masks, part, max_candidates)
    elif isinstance(part, MaskFormerFusionHead):
        yield 'predict', partial(_query_masks, part)


def _dense_boxes(
    proposes: bool, results: InstanceData, cfg: Any, *args: Any, **kwargs: Any
) -> InstanceData:
    scores, indices = fixed_shapes.best_of_head(results, cfg)
    boxes = results.bboxes[indices]
    if 'level_ids' in results:  # of an RPN, which has one class
        labels = torch.zeros_like(indices)
    else:
        labels = results.labels[indices]
    if proposes:
        # whatever a second stage makes of an empty box at the corner is one again, by
        # which multiclass_nms knows it
        boxes = torch.where(scores[:, None] > 0, boxes, torch.zeros_like(boxes))
    return InstanceData(bboxes=boxes, scores=scores, labels=labels)


def _dense_masks(
    head: RTMDetInsHead,
    results: InstanceData,
    mask_feat: Tensor,
    cfg: Any,
    *args: Any,
    **kwargs: Any,
) -> InstanceData:
    scores, indices = fixed_shapes.best_of_head(results, cfg)
    masks = head._mask_predict_by_feat_single(
        mask_feat, results.kernels[indices], results.priors[indices]
    )
    return InstanceData(
        bboxes=results.bboxes[indices],
        scores=scores,
        labels=results.labels[indices],
        masks=masks,
    )


def _extract(
    extractor: SingleRoIExtractor,
    feats: tuple[Tensor, ...],
    rois: Tensor,
    roi_scale_factor: float | None = None,
) -> Tensor:
    """Pool all RoIs from all levels, and choose afterwards."""
    levels = extractor.map_roi_levels(rois, len(feats))
    if roi_scale_factor is not None:
        rois = extractor.roi_rescale(rois, roi_scale_factor)
    pooled = extractor.roi_layers[0](feats[0], rois)
    for level, layer in enumerate(extractor.roi_layers[1 : len(feats)], 1):
        chosen = (levels == level)[:, None, None, None]
        pooled = torch.where(chosen, layer(feats[level], rois), pooled)
    return pooled


def _roi_masks(
    head: FCNMaskHead,
    mask_preds: tuple[Tensor, ...],
    results_list: list[InstanceData],
    *args: Any,
    activate_map: bool = False,
    **kwargs: Any,
) -> list[InstanceData]:
    """Leave masks in their boxes, each of its class."""
    for preds, results in zip(mask_preds, results_list, strict=True):
        masks = preds if activate_map else preds.sigmoid()
        if head.class_agnostic:
            results.masks = masks[:, 0]
        else:
            rows = torch.arange(len(masks), device=masks.device)
            results.masks = masks[rows, results.labels]
    return results_list


def _grid_masks(
    head: SOLOV2Head,
    max_candidates: int | None,
    kernels: Tensor,
    scores: Tensor,
    features: Tensor,
    *args: Any,
    **kwargs: Any,
) -> InstanceData:
    strides = torch.cat(
        [
            scores.new_full((number * number,), float(stride))
            for number, stride in zip(head.num_grids, head.strides, strict=True)
        ]
    )
    return fixed_masks.grid_masks(
        kernels,
        scores,
        features,
        strides,
        head.dynamic_conv_size,
        head.test_cfg,
        max_candidates or fixed_masks.MAX_MASKS,
    )


def _query_logits(
    head: MaskFormerHead, feats: tuple[Tensor, ...], samples: list[Any]
) -> tuple[Tensor, Tensor]:
    """Leave masks as large as the features."""
    logits, masks = head(feats, samples)
    return logits[-1], masks[-1]


def _query_masks(
    head: MaskFormerFusionHead,
    logits: Tensor,
    masks: Tensor,
    samples: list[Any],
    **kwargs: Any,
) -> list[dict[str, InstanceData]]:
    found = [
        fixed_masks.query_masks(
            of_image,
            masks_of_image,
            sample.batch_input_shape,
            head.num_things_classes,
            head.test_cfg.get('max_per_image', 100),
        )
        for of_image, masks_of_image, sample in zip(logits, masks, samples, strict=True)
    ]
    return [dict(ins_results=instances) for instances in found]
