"""What testing needs besides the config of a training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from mmdet.evaluation import DumpDetResults
from mmdet.models import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict

from .preflight import InputError


def without_teacher(cfg: Config) -> None:
    """Leave teacher and distiller out: only training needs them.

    The weights of a distiller in a checkpoint are then not used.
    """
    for part in ('teacher', 'distiller'):
        if part in cfg.model:
            cfg.model[part] = None


def forget_weights(cfg: Any, keys: Sequence[str]) -> None:
    """Set the settings that name a file of weights to None, in all of a config.

    Args:
        cfg: Config, changed in place.
        keys: ``'init_cfg'`` where it loads a checkpoint, and others.
    """
    if isinstance(cfg, list | tuple):
        for value in cfg:
            forget_weights(value, keys)
    if not isinstance(cfg, dict):
        return
    for key, value in cfg.items():
        loads = key != 'init_cfg' or (
            isinstance(value, dict) and value.get('type') == 'Pretrained'
        )
        if key in keys and loads:
            cfg[key] = None
        else:
            forget_weights(value, keys)


def show_predictions(
    cfg: Config, show: bool, folder: str | None, wait_time: float
) -> None:
    """Have the visualization hook draw the predictions.

    Args:
        cfg: Config of the run, changed in place.
        show: Whether to open a window.
        folder: Where to write the images, below the folder of the run's logs.
        wait_time: Seconds for which the window shows an image.

    Raises:
        InputError: If the config has no such hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise InputError(
            '--show and --show-dir need default_hooks=dict(visualization=dict('
            "type='DetVisualizationHook')) in the config"
        )
    hook.update(draw=True)
    if show:
        hook.update(show=True, wait_time=wait_time)
    if folder is not None:
        hook.update(test_out_dir=folder)


def augment(cfg: Config) -> None:
    """Wrap model and pipeline for test-time augmentation.

    ``tta_model`` and ``tta_pipeline`` of the config say how; without them, the boxes
    on the image and on its mirror image are merged by NMS.

    Raises:
        InputError: If masks are to be evaluated, which nobody merges.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    tta_model = cfg.get('tta_model')
    if not tta_model:
        if 'segm' in cfg.test_evaluator.get('metric', ''):
            raise InputError(
                '--tta merges boxes, not masks, but test_evaluator.metric='
                f'{cfg.test_evaluator.metric}; add --cfg-options '
                'test_evaluator.metric=bbox'
            )
        tta_model = dict(
            type='BoxTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
    if not cfg.get('tta_pipeline'):
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        pack = deepcopy(dataset.pipeline[-1])
        pack['meta_keys'] = (
            *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            *('flip', 'flip_direction'),
        )
        cfg.tta_pipeline = [
            *dataset.pipeline[:-1],
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    cfg.model = ConfigDict(**tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """:class:`mmdet.models.DetTTAModel` for models that also predict masks."""

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        for sample in data_samples:
            sample.pred_instances.pop('masks', None)
        return super()._merge_single_sample(data_samples)


class DumpWhole(DumpDetResults):
    """Write the predictions aside first, so that the file is there in whole or not."""

    out_file_path: str

    def compute_metrics(self, results: list) -> dict:
        """See :class:`mmengine.evaluator.DumpResults`."""
        final, self.out_file_path = self.out_file_path, f'{self.out_file_path}.part.pkl'
        metrics = super().compute_metrics(results)
        os.replace(self.out_file_path, final)
        self.out_file_path = final
        return metrics
