"""Which teacher layer supervises which student layer."""

import pytest

from lfi_mmdet.models.distillers import map_layers


@pytest.mark.parametrize(
    'rule, student, teacher, expected',
    [
        ('last', 4, 12, [(3, 11)]),
        ('one_to_one', 3, 3, [(0, 0), (1, 1), (2, 2)]),
        ('uniform', 4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ('uniform', 4, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ('uniform', 4, 2, [(0, 0), (1, 0), (2, 1), (3, 1)]),
        ('uniform', 4, 1, [(0, 0), (1, 0), (2, 0), (3, 0)]),
        ('uniform', 1, 5, [(0, 4)]),
    ],
)
def test_layers_are_paired(rule, student, teacher, expected):
    assert map_layers(rule, student, teacher) == expected


@pytest.mark.parametrize('student', range(1, 9))
@pytest.mark.parametrize('teacher', range(1, 25))
def test_uniform_pairs_ascend_and_end_in_the_last_layers(student, teacher):
    pairs = map_layers('uniform', student, teacher)
    targets = [t for _, t in pairs]
    assert targets == sorted(targets) and targets[0] >= 0
    assert pairs[-1] == (student - 1, teacher - 1)


@pytest.mark.parametrize(
    'args, message',
    [
        (('first', 2, 2), "'first' is not known; choose from"),
        (('one_to_one', 2, 3), 'the student has 2, the teacher 3'),
        (('uniform', 0, 3), '0 student layers'),
    ],
)
def test_impossible_pairs_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        map_layers(*args)
