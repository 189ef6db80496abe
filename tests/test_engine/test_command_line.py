"""Configs that the tools are given."""

import pytest

from lfi_mmdet.engine.command_line import read_config
from lfi_mmdet.engine.preflight import InputError


def test_a_config_of_an_installed_package_is_told_as_in_base():
    theirs = read_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    assert theirs.model.type == 'MaskRCNN'
    ours = read_config('lfi_mmdet::lfi/mask-rcnn_r50_lfi_coco.py', {'model.teacher': 0})
    assert ours.model.type == 'LFIMaskRCNN' and ours.model.teacher == 0
    assert ours.model.roi_head == theirs.model.roi_head


@pytest.mark.parametrize(
    'path, message',
    [
        ('mmdet::mask_rcnn/mask.py', 'mmdet::mask_rcnn/mask.py: no such.*mask-rcnn_'),
        ('lfi_mmdet::lfi/no.py', 'lfi_mmdet::lfi/no.py: no such file; configs in'),
        ('nobody::a/b.py', 'nobody::a/b.py: nobody is not installed'),
        ('torch::a/b.py', 'torch::a/b.py: torch has no configs'),
        ('a/b.py', 'a/b.py: no such file, nor is there a folder a'),
    ],
)
def test_a_config_that_is_not_there_is_named(path, message):
    with pytest.raises(InputError, match=f'^config {message}'):
        read_config(path)
