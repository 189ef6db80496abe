"""Hands cached targets on to the model."""

from __future__ import annotations

from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS

from lfi_mmdet.engine.preflight import InputError


@TRANSFORMS.register_module()
class PackInteractionInputs(PackDetInputs):
    """``PackDetInputs`` for a pipeline with ``LoadCachedTargets``.

    mmdet's own class drops what is no annotation of its own, apart from plain meta
    information, which is copied once more and never moved to the device. This one puts
    the targets beside the ground truth, as ``interactions`` of the data sample, so
    they travel with it.

    Required key: ``interactions``. Arguments are those of ``PackDetInputs``.
    """

    def transform(self, results: dict) -> dict:
        """Pack inputs, ground truth and targets.

        Raises:
            InputError: If there are no targets.
        """
        if 'interactions' not in results:
            raise InputError(
                'PackInteractionInputs: there are no targets to pack; put '
                "dict(type='LoadCachedTargets', store=...) in front of it, or write "
                'PackDetInputs'
            )
        packed = super().transform(results)
        packed['data_samples'].interactions = results['interactions']
        return packed
