"""What is distilled where a config does not say."""

from types import SimpleNamespace

import pytest

from lfi_mmdet.models.distillers import default_distiller
from lfi_mmdet.structures import InteractionSpec


def losses(student_layers, teacher_layers, relations):
    spec = InteractionSpec(tuple(range(student_layers)), 3, 8, True)
    teacher = SimpleNamespace(num_layers=teacher_layers, has_relations=relations)
    return list(default_distiller(spec, teacher)['losses'])


@pytest.mark.parametrize(
    'student, teacher, relations, expected',
    [
        (4, 12, True, ['attention', 'relation', 'dynamics']),
        (4, 12, False, ['attention', 'dynamics']),
        (1, 12, True, ['attention', 'relation']),
        (4, 1, True, ['attention', 'relation']),
        # without queries there is no layer: the distiller says so itself
        (0, 12, False, ['attention']),
    ],
)
def test_losses_are_those_that_student_and_teacher_allow(
    student, teacher, relations, expected
):
    assert losses(student, teacher, relations) == expected
