"""What has no graph, and what is no file of ours, is refused by its name."""

import pytest

from lfi_mmdet.engine.deploy import DeployedDetector, Description, export_program
from lfi_mmdet.engine.preflight import InputError
from tests import small_detectors


@pytest.mark.parametrize('name', ['panoptic_on', 'semantic_on'])
def test_a_segmentation_of_everything_is_refused(name):
    detector = small_detectors.build(small_detectors.small_cfg('mask2former_r50'))
    detector.panoptic_fusion_head.test_cfg[name] = True
    with pytest.raises(InputError, match=f"LFIMask2Former cannot.*'{name}': True"):
        export_program(detector.eval(), (128, 128))


def test_more_detections_than_queries_can_give_are_refused():
    detector = small_detectors.build(small_detectors.small_cfg('dino_r50')).eval()
    detector.bbox_head.test_cfg.max_per_img = 61
    with pytest.raises(InputError, match='max_per_img=61: .* 1 to 60 detections'):
        export_program(detector, (128, 128))
    detector = small_detectors.build(small_detectors.small_cfg('mask2former_r50'))
    detector.panoptic_fusion_head.test_cfg.max_per_image = 0
    with pytest.raises(InputError, match='max_per_image=0: .* 1 to 30 detections'):
        export_program(detector.eval(), (128, 128))


@pytest.mark.parametrize(
    'name, part, method, message',
    [
        ('solov2_r50', 'mask_head', '_predict_by_feat_single', 'predicts in a way of'),
        ('dino_r50', 'bbox_head', '_predict_by_feat_single', 'its own post-processing'),
        ('mask2former_r50', 'panoptic_head', 'predict', 'its own predict'),
        ('mask2former_r50', 'panoptic_fusion_head', 'instance_postprocess', 'its own'),
    ],
)
def test_a_head_that_predicts_in_its_own_way_is_refused(name, part, method, message):
    detector = small_detectors.build(small_detectors.small_cfg(name)).eval()
    head = getattr(detector, part)
    head.__class__ = type('OwnHead', (type(head),), {method: lambda *args: 1 / 0})
    with pytest.raises(InputError, match=f'{part}.type=OwnHead .*{message}'):
        export_program(detector, (128, 128))


def test_a_part_with_steps_of_its_own_is_refused_by_its_name():
    detector = small_detectors.build(small_detectors.small_cfg('mask-rcnn_r50')).eval()
    nms = detector.roi_head.test_cfg.nms
    detector.roi_head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(InputError, match=r"^model.test_cfg.rcnn.nms.type='soft_nms'"):
        export_program(detector, (128, 128))
    detector.roi_head.test_cfg.nms = dict(nms, max_num=5)
    with pytest.raises(InputError, match=r'test_cfg.rcnn.nms.max_num=5'):
        export_program(detector, (128, 128))
    detector.roi_head.test_cfg.nms = nms

    class OwnMaskHead(type(detector.roi_head.mask_head)):
        def predict_by_feat(self, *args, **kwargs):
            raise AssertionError

    detector.roi_head.mask_head.__class__ = OwnMaskHead
    with pytest.raises(InputError, match='mask_head.type=OwnMaskHead'):
        export_program(detector, (128, 128))
    single = small_detectors.build(small_detectors.small_cfg('retinanet_r50')).eval()

    class OwnHead(type(single.bbox_head)):
        def _bbox_post_process(self, *args, **kwargs):
            raise AssertionError

    single.bbox_head.__class__ = OwnHead
    with pytest.raises(InputError, match='bbox_head.type=OwnHead has its own post'):
        export_program(single, (128, 128))


def test_a_file_of_another_version_is_refused_as_such():
    text = Description(shape=(8, 8), pad=(0,) * 3).text()
    assert Description.from_text(text).text() == text
    older = text.replace('mask_shape', 'mask_stride')
    with pytest.raises(ValueError, match='another version.*mask_.*deploy it again'):
        Description.from_text(older)


def test_what_is_no_deployed_detector_is_refused(tmp_path):
    with pytest.raises(InputError, match='a.pth ends in none of .onnx, .pt2'):
        DeployedDetector(tmp_path / 'a.pth')
    for suffix in ('.onnx', '.pt2'):
        path = tmp_path / f'a{suffix}'
        with pytest.raises(InputError, match='does not exist'):
            DeployedDetector(path)
        path.write_bytes(b'something else')
        with pytest.raises(InputError, match='no detector that lfi-mmdet deploy'):
            DeployedDetector(path)
