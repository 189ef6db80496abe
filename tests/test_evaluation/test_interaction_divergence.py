"""The numbers are the ones a pencil gives, and measuring leaves no trace."""

import json
import math

import numpy as np
import pytest
import torch

from lfi_mmdet.evaluation import (
    interaction_dataloader,
    interaction_divergence,
    read_interactions,
)
from lfi_mmdet.evaluation.interaction_divergence import summarise
from lfi_mmdet.models.teachers import GroundTruthTeacher
from lfi_mmdet.structures import InteractionTargets
from tests.tiny import CLASSES


class FixedTeacher(GroundTruthTeacher):
    """Gives the maps it is told to, (B, 2, 3, 4, 4)."""

    def __init__(self, maps):
        super().__init__(blur=(1.0, 1.0), class_names=CLASSES)
        self.maps = maps

    def targets(self, batch_inputs, data_samples, present, preprocessor):
        return InteractionTargets(maps=self.maps, present=present)


def one_hot(patch: int) -> torch.Tensor:
    maps = torch.zeros(1, 2, 3, 16)
    maps[..., patch] = 1
    return maps.unflatten(-1, (4, 4))


def first_batch(config):
    return next(iter(interaction_dataloader(config, max_images=1)))


def test_a_student_that_looks_where_its_teacher_does_has_divergence_zero(
    detector, tiny_config
):
    batch = first_batch(tiny_config)
    pairs = read_interactions(detector, batch).pairs
    student = torch.stack([pair.log_attention.exp() for pair in pairs], 1)
    detector.teacher = FixedTeacher(student.unflatten(-1, (4, 4)))
    result = interaction_divergence(detector, [batch])
    assert [layer.layer for layer in result.layers] == [0, 1]
    for layer in result.layers:
        assert abs(layer.kl) < 1e-5
        assert layer.pointing == layer.teacher_pointing
        assert layer.mass_inside == pytest.approx(layer.teacher_mass_inside, abs=1e-5)


def test_the_divergence_is_the_one_of_the_recorded_logits(detector, tiny_config):
    batch = first_batch(tiny_config)
    with torch.no_grad(), detector.backbone.interactions() as trace:
        detector.eval().backbone(detector.data_preprocessor(batch)['inputs'])
    # a teacher that looks at one patch diverges by -log of the student's share of it
    detector.teacher = FixedTeacher(one_hot(6))
    result = interaction_divergence(detector, [batch])
    labels = batch['data_samples'][0].gt_instances.labels.unique()
    assert result.num_rows == len(labels) == 2
    for layer, logits in zip(result.layers, trace.logits, strict=True):
        share = logits.softmax(-1).mean(1)[0, labels, 6]
        assert layer.kl == pytest.approx(-share.log().mean().item(), abs=1e-5)
        assert layer.kl_uniform == pytest.approx(math.log(16), abs=1e-5)


def test_the_mean_is_over_rows_not_over_images(make_reading):
    log_map = torch.full((1, 3, 16), -math.log(16))
    target = torch.zeros(1, 3, 16)
    target[0, :, 0] = 1
    sharp = make_reading(log_map, target, {}, [True, True, True])
    flat = make_reading(log_map, log_map.exp(), {}, [False, False, True])
    result = summarise([sharp, flat])
    assert (result.num_images, result.num_rows) == (2, 4)
    assert result.layers[0].kl == pytest.approx(math.log(16) * 3 / 4)


def test_absent_texts_do_not_count(make_reading):
    log_map = torch.full((1, 3, 16), -math.log(16))
    log_map[0, 1:] = -50
    target = torch.full((1, 3, 16), 1 / 16)
    reading = make_reading(log_map, target, {}, [True, False, False])
    assert summarise([reading]).layers[0].kl == pytest.approx(0, abs=1e-6)


def test_padding_is_nobodys_business(detector, tiny_config):
    full, narrow = (first_batch(tiny_config) for _ in range(2))
    narrow['inputs'] = [narrow['inputs'][0][:, :, :44]]
    sample = narrow['data_samples'][0]
    sample.set_metainfo(dict(img_shape=(64, 44)))
    sample.gt_instances.labels[:] = 0
    sample.gt_instances.masks.masks = np.ones_like(sample.gt_instances.masks.masks)
    batch = {key: full[key] + narrow[key] for key in full}
    detector.teacher = FixedTeacher(torch.full((2, 2, 3, 4, 4), 1 / 16))
    reading = read_interactions(detector, batch)
    assert reading.valid.sum(-1).tolist() == [16, 12]
    reading.present[0] = False
    result = summarise([reading])
    assert result.num_rows == 1
    assert result.area_inside == pytest.approx(1)
    for layer in result.layers:
        # the teacher is uniform over the image, and all of the image is object, also
        # where a patch reaches over its border
        assert layer.kl_uniform == pytest.approx(0, abs=1e-5)
        assert layer.mass_inside == pytest.approx(1, abs=1e-5)
        assert layer.pointing == 1


def test_pointing_asks_for_the_centre_and_mass_for_the_area(make_reading):
    log_map = torch.full((1, 3, 16), -1e4)
    log_map[0, 0, 5] = math.log(0.75)
    log_map[0, 0, 6] = math.log(0.25)
    log_map[0, 1, 6] = 0.0
    target = torch.zeros(1, 3, 16)
    target[0, :, 5] = 1
    mask = np.zeros((64, 64), bool)
    mask[16:32, 16:24] = True  # left half of patch 5: its centre, pixel 24, is outside
    wide = np.zeros((64, 64), bool)
    wide[16:32, 28:64] = True  # a quarter of patch 5, all of patches 6 and 7
    reading = make_reading(log_map, target, {0: mask, 1: wide}, [True, True, True])
    result = summarise([reading])
    (layer,) = result.layers
    assert result.num_mask_rows == 2
    assert layer.pointing == 0.5
    assert layer.teacher_pointing == 0
    assert layer.mass_inside == pytest.approx((0.75 * 0.5 + 1) / 2)
    assert layer.teacher_mass_inside == pytest.approx((0.5 + 0.25) / 2)
    assert result.area_inside == pytest.approx((0.5 + 2.25) / 16 / 2)


def test_instances_of_a_class_count_together(make_reading):
    masks = np.zeros((2, 64, 64), bool)
    masks[0, :16], masks[1, 48:] = True, True
    log_map = torch.full((1, 3, 16), -math.log(16))
    reading = make_reading(log_map, log_map.exp(), {}, [False, True, False])
    both = make_reading(log_map, log_map.exp(), {0: masks[0], 1: masks[1]}, [False] * 3)
    reading.data_samples = both.data_samples
    reading.data_samples[0].gt_instances.labels[:] = 1
    result = summarise([reading])
    assert result.num_mask_rows == 1
    assert result.layers[0].mass_inside == pytest.approx(0.5)


def test_without_masks_there_is_a_divergence_but_nothing_to_point_at(make_reading):
    log_map = torch.full((1, 3, 16), -math.log(16))
    result = summarise([make_reading(log_map, log_map.exp(), {}, [True] * 3)])
    assert result.area_inside is result.layers[0].pointing is None
    assert result.layers[0].mass_inside is None
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_every_module_is_in_its_mode_again_also_after_an_error(detector, tiny_config):
    modes = []
    detector.backbone.register_forward_hook(lambda m, *_: modes.append(m.training))
    detector.train()
    detector.neck.eval()
    before = [module.training for module in detector.modules()]
    weights = {name: w.clone() for name, w in detector.state_dict().items()}
    attributes = dict(vars(detector.backbone))
    batch = first_batch(tiny_config)
    reading = read_interactions(detector, batch)
    with pytest.raises(ValueError, match='targets of 3 images'):
        detector.teacher = FixedTeacher(torch.zeros(3, 2, 3, 4, 4))
        read_interactions(detector, batch)
    assert modes == [False, False]
    assert [module.training for module in detector.modules()] == before
    assert vars(detector.backbone) == attributes
    assert not reading.pairs[0].log_attention.requires_grad
    for name, weight in detector.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_a_detector_without_a_teacher_is_refused(detector, tiny_config):
    detector.teacher = None
    with pytest.raises(ValueError, match=r'model\.teacher is None'):
        interaction_divergence(detector, [first_batch(tiny_config)])


def test_a_dataset_without_any_present_text_is_refused(make_reading):
    log_map = torch.full((1, 3, 16), -math.log(16))
    reading = make_reading(log_map, log_map.exp(), {}, [False] * 3)
    with pytest.raises(ValueError, match='no text is present in any of the 1 images'):
        summarise([reading])
