"""Says which detectors have a graph, before anything is recorded."""

from __future__ import annotations

from typing import Any

from mmdet.models.dense_heads import (
    DETRHead,
    MaskFormerHead,
    RPNHead,
    RTMDetInsHead,
    SOLOV2Head,
)
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import BaseDetector
from mmdet.models.detectors.single_stage_instance_seg import (
    SingleStageInstanceSegmentor,
)
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead

from lfi_mmdet.engine.preflight import InputError

from .fixed_shapes import check_nms

_FUSION = ('predict', 'instance_postprocess')
_POST_PROCESS = (BaseDenseHead._bbox_post_process, RPNHead._bbox_post_process)


def refusal(detector: BaseDetector, why: str) -> InputError:
    """The message about a detector that has no graph."""
    return InputError(
        f'model.type={type(detector).__name__} cannot be exported: {why}. Those can '
        'whose prediction has the same steps for every image: Faster, Mask and Cascade '
        'R-CNN, RetinaNet, FCOS and others of one stage with the post-processing of '
        'BaseDenseHead, RTMDet-Ins, SOLOv2, DINO and others with that of DETRHead, and '
        'Mask2Former for instances'
    )


def check_supported(detector: BaseDetector) -> None:
    """Check that a graph of a detector would do what the detector does.

    Args:
        detector: Any detector of mmdet.

    Raises:
        InputError: If it would not; the message names the part.
    """
    model: Any = detector
    if isinstance(detector, SingleStageInstanceSegmentor):
        _check_mask_head(detector, model.mask_head)
    if hasattr(model, 'panoptic_head'):
        _check_panoptic_heads(detector)
    for name in ('rpn_head', 'bbox_head'):
        head = getattr(model, name, None)
        if head is None or isinstance(head, RTMDetInsHead):
            continue
        if not _known_post_processing(type(head)):
            kind = type(head).__name__
            raise refusal(detector, f'{name}.type={kind} has its own post-processing')
        if isinstance(head, DETRHead):
            queries = model.num_queries
            pairs = head.num_classes if head.loss_cls.use_sigmoid else 1
            number = head.test_cfg.get('max_per_img', queries)
            _check_number('max_per_img', number, queries * pairs)
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is not None:
        _check_roi_head(detector, roi_head)
    for key, part in (
        ('test_cfg.rpn', getattr(model, 'rpn_head', None)),
        ('test_cfg', getattr(model, 'bbox_head', None)),
        ('test_cfg.rcnn', roi_head),
    ):
        cfg = getattr(part, 'test_cfg', None)
        if cfg is not None and 'nms' in cfg:
            try:
                check_nms(cfg.nms, f'model.{key}.nms')
            except ValueError as error:
                raise InputError(str(error)) from error


def _known_post_processing(kind: type) -> bool:
    if issubclass(kind, DETRHead):
        name = '_predict_by_feat_single'
        return getattr(kind, name) is getattr(DETRHead, name)
    return getattr(kind, '_bbox_post_process', None) in _POST_PROCESS


def _check_number(name: str, number: int, most: int) -> None:
    if not 0 < number <= most:
        raise InputError(
            f'model.test_cfg.{name}={number}: of so many queries and classes there are '
            f'1 to {most} detections'
        )


def _check_mask_head(detector: BaseDetector, head: Any) -> None:
    name = '_predict_by_feat_single'
    if getattr(type(head), name, None) is not getattr(SOLOV2Head, name):
        kind = type(head).__name__
        raise refusal(detector, f'mask_head.type={kind} predicts in a way of its own')


def _check_panoptic_heads(detector: BaseDetector) -> None:
    model: Any = detector
    for name, known, methods in (
        ('panoptic_head', MaskFormerHead, ['predict']),
        ('panoptic_fusion_head', MaskFormerFusionHead, _FUSION),
    ):
        kind = type(getattr(model, name))
        for method in methods:
            if getattr(kind, method, None) is not getattr(known, method):
                raise refusal(
                    detector, f'{name}.type={kind.__name__} has its own {method}'
                )
    cfg = model.panoptic_fusion_head.test_cfg
    asked = {
        name: cfg.get(name, default)
        for name, default in (
            ('panoptic_on', True), ('semantic_on', False), ('instance_on', False)
        )
    }  # fmt: skip
    if asked != dict(panoptic_on=False, semantic_on=False, instance_on=True):
        raise refusal(
            detector,
            f'model.test_cfg says {asked}, and only instances have a graph: '
            'panoptic_on=False, semantic_on=False, instance_on=True',
        )
    head = model.panoptic_head
    _check_number(
        'max_per_image',
        cfg.get('max_per_image', 100),
        head.num_queries * model.panoptic_fusion_head.num_classes,
    )


def _check_roi_head(detector: BaseDetector, roi_head: Any) -> None:
    kind = type(roi_head)
    for method in ('predict_bbox', 'predict_mask'):
        known = [getattr(base, method) for base in (StandardRoIHead, CascadeRoIHead)]
        if getattr(kind, method, None) not in known:
            raise refusal(detector, f'roi_head.type={kind.__name__} has its own steps')
    for module in roi_head.modules():
        name = type(module).__name__
        if hasattr(module, 'roi_layers') and not isinstance(module, SingleRoIExtractor):
            raise refusal(detector, f'{name} pools RoIs in a way of its own')
    heads = getattr(roi_head, 'mask_head', None)
    if not getattr(roi_head, 'with_mask', False) or heads is None:
        return
    for head in heads if hasattr(heads, '__iter__') else [heads]:
        if type(head).predict_by_feat is not FCNMaskHead.predict_by_feat:
            raise refusal(detector, f'mask_head.type={type(head).__name__} is not FCN')
