"""Gives the teacher its texts from the training dataset."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from lfi_mmdet.models.teachers.presence import check_labels


@HOOKS.register_module()
class ClassNamesHook(Hook):
    """Take the class names of the training dataset as the teacher's texts.

    Runs before the first iteration, so a project that inherits a config changes its
    classes in one place, the dataset's ``metainfo``. Then checks that there are labels,
    if the teacher needs them, and lets it check the dataset, see
    :meth:`FrozenTeacher.check_dataset`. Priority: VERY_HIGH.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Set the names on the detector.

        Raises:
            ValueError: If the dataset has no class names, their number is not that of
                the queries, or the teacher cannot be used with the dataset.
            InputError: If the teacher needs labels, and a dataset has none.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, 'set_class_names'):
            return
        if getattr(model, 'teacher', None) is None:
            return  # also the twin from an LFI config with model.teacher=None
        metainfo = runner.train_dataloader.dataset.metainfo
        if isinstance(metainfo, list):  # ConcatDataset of datasets that differ
            metainfo = metainfo[0]
        classes = metainfo.get('classes')
        if not classes:
            raise ValueError(
                'train_dataloader.dataset has no class names; give it '
                "metainfo=dict(classes=('name', ...))"
            )
        model.set_class_names(classes)
        dataset = runner.train_dataloader.dataset
        if getattr(model.teacher, 'needs_labels', False):
            check_labels(dataset, 'train_dataloader.dataset')
        model.teacher.check_dataset(dataset)
