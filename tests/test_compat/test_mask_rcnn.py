"""A detector of mmdet works on whatever ops there are."""

import pytest
import torch

from lfi_mmdet.compat import setup

setup()

from mmdet.registry import MODELS  # noqa: E402
from mmdet.testing import demo_mm_inputs  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.hub import get_config  # noqa: E402


@pytest.mark.slow
def test_mask_rcnn_trains_and_predicts():
    register_all_modules()
    torch.manual_seed(0)
    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = None
    cfg.test_cfg.rcnn.score_thr = 0.0
    model = MODELS.build(cfg)
    batch = demo_mm_inputs(
        2, [[3, 64, 96], [3, 96, 64]], num_items=[3, 2], num_classes=80, with_mask=True
    )

    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total, logs = model.parse_losses(losses)
    total.backward()
    assert {'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} < set(logs)
    assert torch.isfinite(total)
    # through both RoIAligns and the region proposals
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name

    model.eval()
    with torch.no_grad():
        first, second = model(**model.data_preprocessor(batch, False), mode='predict')
    assert first.pred_instances.masks.shape[1:] == (64, 96)
    assert second.pred_instances.masks.shape[1:] == (96, 64)
    for sample in (first, second):
        assert 0 < len(sample.pred_instances) <= 100
