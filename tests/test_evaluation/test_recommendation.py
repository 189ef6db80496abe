"""The rule by which layers are recommended, case by case."""

import numpy as np
import pytest

from lfi_mmdet.evaluation.recommendation import (
    Recommendation,
    config_lines,
    recommend,
)
from lfi_mmdet.evaluation.teacher_quality import Estimate, LayerQuality


def estimate(value, chance=0.0, error=0.02, images=500):
    return Estimate(
        value, value - 2 * error, value + 2 * error, error, chance, images, images
    )


def layer(reading, name, specific, pointing=0.6, **metrics):
    metrics = dict(inside_named=estimate(0.5, 0.2)) | metrics
    return LayerQuality(
        reading,
        name,
        pointing=estimate(pointing, 0.2),
        specific_pointing=None if specific is None else estimate(specific),
        **metrics,
    )


def test_the_best_layer_and_those_not_below_its_interval_are_recommended():
    found = recommend(
        [
            layer('attention', '0', 0.30),
            layer('similarity', '0', 0.47),  # below 0.54 - 0.04
            layer('similarity', '1', 0.51),
            layer('similarity', '2', 0.54),
        ]
    )
    assert found == Recommendation('similarity', '2', ['1', '2'], 'specific_pointing')


def test_layers_of_other_readings_are_not_mixed_in():
    found = recommend([layer('attention', '0', 0.53), layer('similarity', '1', 0.54)])
    assert (found.reading, found.layers) == ('similarity', ['1'])


def test_a_layer_that_only_finds_objects_is_not_recommended():
    """The trial with CoCa: attention pointed well, but not at the named class."""
    found = recommend(
        [
            layer('attention', '0', 0.01, pointing=0.9),
            layer('similarity', '0', 0.2, pointing=0.4),
        ]
    )
    assert (found.reading, found.layers) == ('similarity', ['0'])


def test_a_layer_that_points_at_objects_less_than_chance_is_not_recommended():
    found = recommend([layer('attention', '0', 0.4, pointing=0.1)])
    assert found.reading is None


def test_among_equals_the_sharper_map_is_best():
    dull = layer('attention', '0', 0.5, inside_named=estimate(0.3))
    sharp = layer('attention', '1', 0.5, inside_named=estimate(0.6))
    assert recommend([dull, sharp]).best == '1'
    assert recommend([dull, sharp]).layers == ['0', '1']


def test_nothing_is_recommended_and_said_so_if_no_layer_beats_chance():
    found = recommend([layer('attention', '0', 0.03), layer('attention', '1', -0.3)])
    assert (found.reading, found.best, found.layers) == (None, None, [])
    assert 'no layer of any reading beats chance' in found.warnings[-1]


def test_the_best_of_many_random_layers_is_not_recommended():
    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.normal(0, 0.02, 200)
        many = [layer('attention', str(i), v) for i, v in enumerate(values)]
        assert max(values) > 2 * 0.02, 'alone, the luckiest would pass'
        assert recommend(many).reading is None


def test_a_single_image_is_no_evidence():
    one = layer('attention', '0', 0.9)
    for name in ('pointing', 'specific_pointing'):
        single = Estimate(0.9, None, None, None, 0.0, 1, 2)
        setattr(one, name, single)
    found = recommend([one])
    assert found.reading is None and found.warnings[0].startswith('1 images')


def test_without_images_of_two_classes_pointing_stands_in():
    found = recommend(
        [
            layer('attention', '0', None, pointing=0.5),
            layer('attention', '1', None, pointing=0.8),
        ]
    )
    assert (found.metric, found.layers) == ('pointing', ['1'])
    assert 'no image shows two classes' in found.warnings[0]


def test_few_images_are_called_few():
    few = layer('attention', '0', 0.5)
    few.pointing.num_images = 49
    assert recommend([few]).warnings == [
        '49 images with objects are few: the intervals are wide'
    ]


@pytest.mark.parametrize(
    'name, advice',
    [
        ('presence_auc', "keep present='ground_truth'"),
        ('score_auc', "do not use present='teacher'"),
    ],
)
def test_a_presence_that_is_guessed_is_warned_of(name, advice):
    good = layer('attention', '0', 0.5, **{name: estimate(0.61, 0.5)})
    bad = layer('attention', '0', 0.5, **{name: estimate(0.59, 0.5)})
    assert not recommend([good]).warnings
    (warning,) = recommend([bad]).warnings
    assert advice in warning and '0.59' in warning


def test_without_any_object_there_is_no_measuring():
    with pytest.raises(ValueError, match='no image shows an object with a mask'):
        recommend([LayerQuality('attention', '0')])


def lines_for(layers, accepted, **kwargs):
    return config_lines(
        Recommendation('similarity', layers[-1], layers, ''), accepted, **kwargs
    )


def test_the_lines_to_paste_are_python():
    lines = lines_for(['3', '11'], {'reading', 'layers'})
    scope: dict = {}
    exec(lines, scope)
    assert scope['model'] == dict(teacher=dict(reading='similarity', layers=[3, 11]))


def test_heads_are_listed_and_have_to_be_checked_together():
    lines = lines_for(['3.h0', '3.h12', '5.h1'], {'reading', 'layers', 'heads'})
    scope: dict = {}
    exec(lines, scope)
    assert scope['model']['teacher'] == dict(
        reading='similarity', layers=[3, 5], heads=[0, 1, 12]
    )
    assert '# 3.h0, 3.h12, 5.h1 were good one by one' in lines
    assert 'check them again' in lines


def test_what_no_argument_says_is_said_in_a_comment():
    assert lines_for(['0', '1'], set()) == (
        '# layers to distil: 0, 1; the teacher takes no argument that says so'
    )
    lines = lines_for(['late'], {'reading', 'layers'})
    assert "dict(reading='similarity')" in lines and '# layers to distil: late' in lines


def test_one_of_several_teachers_has_its_own_place():
    lines = lines_for(['1'], {'layers'}, place='teachers[1]: dict({})')
    assert lines == 'teachers[1]: dict(layers=[1])'
