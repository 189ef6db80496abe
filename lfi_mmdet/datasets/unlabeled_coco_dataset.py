"""Images of a COCO file that need no labels, and no list of classes either."""

from __future__ import annotations

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get_local_path, load

from lfi_mmdet.engine.preflight.annotations import (
    check_entries,
    check_optional_categories,
)
from lfi_mmdet.engine.preflight.errors import InputError


@DATASETS.register_module()
class UnlabeledCocoDataset(CocoDataset):
    """Lists the images of a COCO file and nothing else of it.

    ``CocoDataset`` needs the categories of a file even if it has no annotations, and
    files of images alone, as COCO's ``image_info_unlabeled2017.json``, may lack them.
    Here classes are those of ``metainfo``, as of the labelled images: COCO's by
    default. Annotations are ignored if there are any. Of ``filter_cfg`` only
    ``min_size`` makes sense: ``filter_empty_gt`` leaves no image, which is refused.
    """

    #: Read by the checks before a run
    NEEDS_CATEGORIES = False

    def load_data_list(self) -> list[dict]:
        """List the images, each without instances.

        Raises:
            InputError: If the file lists no images, an image lacks what is read of it,
                or the file has categories, but not all classes among them.
        """
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            content = load(path, file_format='json')
        images = content.get('images') if isinstance(content, dict) else None
        if not isinstance(images, list):
            raise InputError(
                f'ann_file: {self.ann_file} is no COCO file; it lacks a list of images'
            )
        # annotations are not read, so they need not be of any form
        check_entries(dict(images=images), 'ann_file', self.ann_file)
        check_optional_categories(
            self.metainfo['classes'], content, 'dataset', self.ann_file
        )
        self.cat_ids: list[int] = []
        self.cat2label: dict[int, int] = {}
        self.cat_img_map: dict[int, list[int]] = {}
        return [
            self.parse_data_info(
                dict(raw_img_info=dict(image, img_id=image['id']), raw_ann_info=[])
            )
            for image in images
        ]

    def filter_data(self) -> list[dict]:
        """Leave out small images, as ``filter_cfg`` says.

        Raises:
            InputError: If no image is left.
        """
        kept = super().filter_data()
        if not kept:
            raise InputError(
                f'filter_cfg={dict(self.filter_cfg or {})} leaves no image of '
                f'{self.ann_file}, which is read without labels; choose '
                'filter_cfg=None or a smaller min_size'
            )
        return kept
